"""The phases of a comparison on a coordination task, for `--estimate`; the recorded episodes are left out."""

import dataclasses

import jax

from coda_jax.backend import Sizes
from coda_jax.dynamics.ensemble import make_dynamics
from coda_jax.marl.input_scale import raw_inputs
from coda_jax.prior import make_model
from experiments.pipeline.learners import make_learner
from experiments.pipeline.phase_costs import (
    PhaseCost,
    Trained,
    added,
    dataset_shapes,
    dynamics_phase,
    fit_phase,
    key_shapes,
    physics_cost,
    prior_shapes,
    training_phases,
)
from experiments.tasks.environments import make_task
from experiments.tasks.settings import CoordinationConfig, methods_of
from experiments.tasks.training import World, augmentation_of, dynamics_of, rows_of, with_reward_unit


def phases_of(config: CoordinationConfig, num_devices: int, sizes: Sizes) -> list[PhaseCost]:
    """The fits, and the trainings of all methods together, on each of so many devices."""
    task, training = make_task(config.data, config.dataset), config.training
    env = with_reward_unit(task.env, task.reward_unit)
    num_steps, seeds = config.num_episodes * env.spec.episode_length, config.num_seeds // num_devices
    dataset = dataset_shapes(env.spec, num_steps, training.horizon)
    model = make_model(env.spec, training.horizon, config.denoiser, config.diffusion)
    dynamics_config = dynamics_of(config, task)
    one_step = make_dynamics(env.spec, dynamics_config)
    phases = [
        fit_phase(config.denoiser, model, dataset, 1, sizes),
        dynamics_phase(dynamics_config, env.spec, dataset),
    ]
    dynamics = jax.eval_shape(one_step.fit, dataset, key_shapes())
    episodes = ()  # training does not look at them
    world = World(task, env, episodes, dataset, model, prior_shapes(model, num_steps), one_step, dynamics)  # pyright: ignore[reportArgumentType]
    physics = physics_cost(env)
    for method in methods_of(config).values():
        settings = dataclasses.replace(config.learner, actor_teammates=method.actor_teammates)
        learner = make_learner(config.algorithm, settings, env.spec, raw_inputs(env.spec))
        augmentation, prior = augmentation_of(config, method, world, learner)
        sampler = config.diffusion if method.augmentation in ("guided", "unconditional") else None
        trained = Trained(env, learner, augmentation, sampler, prior, dataset)
        phases += training_phases(trained, rows_of(training, method), seeds, physics, sizes)
    return added(phases)
