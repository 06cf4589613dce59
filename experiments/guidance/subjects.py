"""What samples are measured with: a task, its data, the models fitted to it, and a policy."""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from coda_jax.coda import make_trainer
from coda_jax.data.dataset import Dataset, make_dataset, sample_windows
from coda_jax.dynamics.ensemble import Dynamics
from coda_jax.envs.base import Environment
from coda_jax.marl.input_scale import standardised_inputs
from coda_jax.marl.learner import Learner, LearnerState
from coda_jax.prior import Prior, TrajectoryModel
from coda_jax.types import Trajectory
from experiments.guidance.settings import SteeringConfig, base_of
from experiments.host.devices import set_up_devices
from experiments.host.errors import UserError
from experiments.pipeline.learners import make_learner
from experiments.pipeline.recovery import policy_of_run
from experiments.pipeline.run import fit_episodes, load_data
from experiments.pipeline.run import run as train_run
from experiments.pipeline.settings import OF_OLDER_RUNS, ExperimentConfig
from experiments.tasks.settings import DEFAULTS
from experiments.tasks.training import make_world


class Subject(NamedTuple):
    """A task with its data, fitted models, and one policy.

    config:   settings of sampling and of the one-step model.
    env:      the task.
    dataset:  recorded windows, to which the models were fitted.
    held_out: other recorded windows.
    """

    config: ExperimentConfig
    env: Environment
    dataset: Dataset
    held_out: Dataset
    model: TrajectoryModel
    prior: Prior
    dynamics: Dynamics
    learner: Learner
    state: LearnerState

    def real(self, num: int, seed: int) -> Trajectory:
        """Held-out windows `[num, H, ...]`."""
        return sample_windows(self.held_out, jax.random.key(seed), num, len(self.held_out.offsets))

    def recorded(self, num: int) -> Float[Array, "M S"]:
        """At most `num` recorded states, at even distances."""
        return recorded_states(self.dataset, num)


def recorded_states(dataset: Dataset, num: int) -> Float[Array, "M S"]:
    """At most `num` states of a dataset, at even distances."""
    states = dataset.steps.state
    return states[np.linspace(0, len(states) - 1, min(num, len(states))).astype(int)]


def mamujoco_subject(config: SteeringConfig, output: Path) -> Subject:
    """The data, models and policy of a run of the main job, trained below the folder `output` if none is given.

    Raises:
        UserError: no finished run, or one without that policy seed.
    """
    base, trained = base_of(config), config.run or output / "training"
    mesh = set_up_devices(1)
    if config.run is None:
        train_run(dataclasses.replace(base, run_dir=trained))
    policy = policy_of_run(trained)
    if config.seed not in policy.seeds:
        raise UserError(f"--seed is {config.seed}; the run has the seeds {policy.seeds}")
    base = dataclasses.replace(base, augmentation="coda", consequences="model")  # fits both models
    with jax.default_matmul_precision(base.precision):
        env, episodes = load_data(base, mesh)
        fit = fit_episodes(base, env, episodes, mesh)
    assert isinstance(fit.prior, Prior) and fit.dynamics is not None
    models = fit.model, fit.prior, fit.dynamics
    return Subject(base, env, fit.dataset, fit.held_out, *models, policy.as_learner(), policy.weights_of(config.seed))


def same_side_subject(num_updates: int, seed: int) -> Subject:
    """Same side at its default settings, the policy trained on recorded data alone."""
    task = DEFAULTS["same-side"]
    world = make_world(task)
    learner = make_learner(task.algorithm, task.learner, world.env.spec, standardised_inputs(world.dataset.steps))
    num_rounds = math.ceil(num_updates / task.training.updates_per_round)
    trainer = make_trainer(world.env, learner, None, dataclasses.replace(task.training, num_rounds=num_rounds))
    trained, _ = jax.jit(trainer.run)(trainer.init(jax.random.key(seed)), world.dataset, ())
    others = world.task.record(jax.random.key(1))
    others = dataclasses.replace(others, reward=others.reward / world.task.reward_unit)
    held_out = make_dataset(others, task.training.horizon)
    settings = dataclasses.replace(
        OF_OLDER_RUNS, diffusion=task.diffusion, dynamics=task.dynamics, training=task.training
    )
    models = world.model, world.prior, world.dynamics
    return Subject(settings, world.env, world.dataset, held_out, *models, learner, trained.learner)
