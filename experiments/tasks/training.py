"""Trains every method of the comparison on a coordination task."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from coda_jax.augmentation.base import Augmentation
from coda_jax.augmentation.guided import guided
from coda_jax.augmentation.model_based import PriorWithDynamics, model_consequences, model_rollouts
from coda_jax.augmentation.oracle import oracle
from coda_jax.augmentation.proximal_replay import proximal_replay
from coda_jax.augmentation.unconditional import unconditional
from coda_jax.coda import across_seeds, make_trainer
from coda_jax.data.dataset import Dataset, Episodes, episode_returns, make_dataset
from coda_jax.dynamics.ensemble import Dynamics, DynamicsConfig, DynamicsModel, make_dynamics
from coda_jax.envs.base import Environment, EnvState
from coda_jax.envs.rollout import rollout
from coda_jax.evaluation import action_response
from coda_jax.marl.input_scale import standardised_inputs
from coda_jax.marl.learner import Learner, LearnerState
from coda_jax.prior import Prior, TrajectoryModel, fit_prior, fit_transform, make_model
from coda_jax.schedule import CodaConfig
from coda_jax.types import PRNGKey
from experiments.host.cache import cache_folder, cache_key, lock
from experiments.host.checkpoints import open_cached, single_device_template
from experiments.host.devices import seed_keys
from experiments.host.errors import UserError
from experiments.host.files import digest
from experiments.pipeline.learners import make_learner
from experiments.tasks.environments import CoordinationTask, make_task
from experiments.tasks.settings import CoordinationConfig, Method


class World(NamedTuple):
    """A task, its recorded episodes, and the prior and the one-step model fitted to them.

    Rewards of the environment and of the episodes are in the task's units of reward.
    """

    task: CoordinationTask
    env: Environment
    episodes: Episodes
    dataset: Dataset
    model: TrajectoryModel
    prior: Prior
    one_step: DynamicsModel
    dynamics: Dynamics

    @property
    def dataset_return(self) -> float:
        """The mean return of the recorded episodes."""
        return float(episode_returns(self.episodes).mean()) * self.task.reward_unit


class Trained(NamedTuple):
    """A method's training.

    returns:  `[rounds + 1, seeds]` mean return of the evaluation episodes before and after each round of updates.
    ends:     `[seeds, episodes, A]` each agent's part in the convention at the ends of episodes of the final policy.
    seconds:  compilation and training.
    response: `[seeds]` how far the next states of trajectories guided toward the final policy follow its actions
              (`action_response`); None where nothing is guided, as the next two.
    scale:    `[rounds, seeds]` lambda of the synthetic trajectories of each round.
    spread:   `[rounds, seeds]` that of their actions around the policy's.
    """

    returns: Float[np.ndarray, "R S"]
    ends: Float[np.ndarray, "S E A"]
    seconds: float = 0.0
    response: Float[np.ndarray, "S"] | None = None
    scale: Float[np.ndarray, "T S"] | None = None
    spread: Float[np.ndarray, "T S"] | None = None


def make_world(config: CoordinationConfig) -> World:
    """Rolls out the recorded episodes, and fits prior and one-step model to them, or takes both from the cache."""
    key_data, key_fit, key_dynamics = jax.random.split(jax.random.key(0), 3)
    task = make_task(config.data, config.dataset)
    env = with_reward_unit(task.env, task.reward_unit)
    episodes = task.record(key_data)
    episodes = dataclasses.replace(episodes, reward=episodes.reward / task.reward_unit)
    dataset = make_dataset(episodes, config.training.horizon)
    model = make_model(env.spec, config.training.horizon, config.denoiser, config.diffusion)
    dynamics = dynamics_of(config, task)
    one_step = make_dynamics(env.spec, dynamics)

    teams = None if task.learned_teams is None else (config.dataset, digest(task.learned_teams))
    recipe = [config.data, teams, config.training.horizon, config.denoiser, dynamics]
    entry = cache_folder() / "coordination" / cache_key(recipe)
    with lock(entry, "the models of a coordination task"):
        denoiser = jax.eval_shape(lambda key: model.generator.init(key).ema, key_fit)
        prior = Prior(transform=fit_transform(dataset, env.spec), denoiser=denoiser)
        shapes = prior, jax.eval_shape(one_step.fit, dataset, key_dynamics)
        checkpoints, restored = open_cached(entry, single_device_template(shapes, jax.devices()[0]))
        if restored is None:
            fitted = fit_prior(model, dataset, key_fit), jax.jit(one_step.fit)(dataset, key_dynamics)
            checkpoints.save(config.denoiser.num_updates, fitted)
        else:
            fitted = restored.tree
        checkpoints.close()
    return World(task, env, episodes, dataset, model, fitted[0], one_step, fitted[1])


def dynamics_of(config: CoordinationConfig, task: CoordinationTask) -> DynamicsConfig:
    """The settings of the one-step model, with the inputs of the reward."""
    is_known = config.reward_inputs == "known"
    return dataclasses.replace(config.dynamics, reward_inputs=task.reward_inputs if is_known else ())


def train(config: CoordinationConfig, method: Method, world: World, mesh: Mesh) -> Trained:
    """Trains all seeds of a method.

    Raises:
        UserError: NaNs in the training.
    """
    settings = dataclasses.replace(config.learner, actor_teammates=method.actor_teammates)
    learner = make_learner(config.algorithm, settings, world.env.spec, standardised_inputs(world.dataset.steps))
    training = rows_of(config.training, method)
    augmentation, prior = augmentation_of(config, method, world, learner)
    single = make_trainer(world.env, learner, augmentation, training, config.num_seeds // mesh.size)
    trainer = across_seeds(single, mesh)
    seeds = np.arange(config.seed, config.seed + config.num_seeds)
    keys = seed_keys(seeds, mesh)
    inputs = jax.device_put((world.dataset, prior), NamedSharding(mesh, PartitionSpec()))
    state, reports = jax.jit(trainer.run)(jax.jit(trainer.init)(keys), *inputs)
    finite = np.all([np.asarray(flags) for flags in jax.tree.leaves(reports.finite)], axis=(0, 1))
    if not finite.all():
        raise UserError(f"NaN while training, seed {seeds[~finite][0]}")
    measured = [at for at, scheduled in enumerate(trainer.schedule) if scheduled.kind != "generate"]
    returns = np.asarray(reports.returns)[measured].mean(axis=-1) * world.task.reward_unit
    ends = jax.jit(jax.vmap(lambda learned: ends_of(world.task, learner, learned)))(state.learner)
    in_training = [at for at, scheduled in enumerate(trainer.schedule) if scheduled.kind == "train"]
    scale, spread = (
        np.asarray(reports.metrics[name])[in_training] if name in reports.metrics else None
        for name in ("guidance", "action_spread")
    )
    response = None
    if method.augmentation == "guided" and config.guidance != 0:
        assert augmentation is not None and scale is not None
        of_policy = functools.partial(response_of, world.env, augmentation)
        last = jax.device_put(scale[-1], NamedSharding(mesh, PartitionSpec("seed")))
        response = np.asarray(jax.jit(jax.vmap(of_policy, in_axes=(0, 0, None, None)))(last, state.learner, *inputs))
    return Trained(returns, np.asarray(ends), response=response, scale=scale, spread=spread)


def rows_of(training: CodaConfig, method: Method) -> CodaConfig:
    """The rows of a mini-batch that each term of the losses sees."""
    if not method.is_split:
        return training
    return dataclasses.replace(training, actor_rows="synthetic", cloning_rows="recorded")


def augmentation_of(
    config: CoordinationConfig, method: Method, world: World, learner: Learner
) -> tuple[Augmentation | None, Any]:
    """The method's source of synthetic trajectories, and the fitted models that it samples from."""
    horizon, noise = config.training.horizon, config.rollout_noise
    match method.augmentation:
        case "guided":
            sampler = dataclasses.replace(config.diffusion, through_denoiser=method.through_denoiser)
            model = world.model._replace(sampler=sampler)
            coda = guided(model, learner, config.guidance_scale, method.recorded_steps)
            if not method.by_model:
                return coda, world.prior
            fitted = PriorWithDynamics(prior=world.prior, dynamics=world.dynamics)
            return model_consequences(coda, world.env, world.one_step, learner), fitted
        case "unconditional":
            return unconditional(world.model), world.prior
        case "proximal":
            return proximal_replay(learner, horizon), ()
        case "model":
            return model_rollouts(world.env, world.one_step, learner, horizon, noise), world.dynamics
        case "oracle":
            return oracle(world.env, learner, horizon, noise), ()
    return None, ()


def with_reward_unit(env: Environment, unit: float) -> Environment:
    """The environment with its rewards divided by `unit`; the critics' values are then of the order of 10."""

    def step(now: EnvState, action: Float[Array, "A U"]) -> EnvState:
        following = env.step(now, action)
        return dataclasses.replace(following, reward=following.reward / unit)

    return env._replace(step=step)


def ends_of(task: CoordinationTask, learner: Learner, state: LearnerState) -> Float[Array, "E A"]:
    """Each agent's part in the convention before the last step of 32 noise-free episodes."""
    num_episodes = 32

    def act(obs: Array, carry: Array, key: PRNGKey) -> tuple[Array, Array]:
        del key
        return learner.act(state, obs, carry)

    carry = learner.initial_carry((num_episodes,))
    recorded = rollout(task.env, act, carry, jax.random.key(1), num_episodes, task.env.spec.episode_length)
    return task.ends(recorded.steps.state[-1])


def response_of(
    env: Environment,
    augmentation: Augmentation,
    guidance: Float[Array, ""],
    state: LearnerState,
    dataset: Dataset,
    prior: Any,
) -> Float[Array, ""]:
    """The response of 64 guided trajectories to the actions of a policy, against unguided ones of the same noise."""
    guided_set, unguided_set = (
        augmentation.sample(state, dataset, prior, scale, jax.random.key(2), 64)
        for scale in (guidance, jnp.float32(0.0))
    )
    return action_response(env, guided_set, unguided_set, jnp.std(dataset.steps.state, axis=0))
