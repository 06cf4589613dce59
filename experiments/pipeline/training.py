"""Training on the host: iterates the rounds of Algorithm 2, saves, measures and prints."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from coda_jax.augmentation.base import Augmentation
from coda_jax.augmentation.model_based import model_rollouts
from coda_jax.augmentation.oracle import oracle
from coda_jax.augmentation.unconditional import unconditional
from coda_jax.coda import Report, Trainer, TrainingState, across_seeds, make_trainer
from coda_jax.dynamics.ensemble import make_dynamics
from coda_jax.envs.base import Environment
from coda_jax.marl.input_scale import raw_inputs, standardised_inputs
from coda_jax.marl.learner import Learner
from coda_jax.policy import FILE, policy_of, save_policy
from coda_jax.prior import Prior
from coda_jax.schedule import ScheduledRound
from coda_jax.types import Trajectory
from experiments.host.checkpoints import Checkpoints, Restored
from experiments.host.clock import Clock
from experiments.host.console import phase
from experiments.host.devices import replicated, seed_keys
from experiments.host.errors import UserError
from experiments.host.hosts import gathered, is_first
from experiments.host.run_folder import RunFolder
from experiments.pipeline.consequences import coda
from experiments.pipeline.fitting import Fit
from experiments.pipeline.learners import make_learner
from experiments.pipeline.quality import (
    WINDOWS,
    Quality,
    quality_meter,
    real_trajectories,
    spread_over_seeds,
)
from experiments.pipeline.settings import ExperimentConfig

PHASES = ("collect", "fit", "compile", "generate", "train", "evaluate", "quality")
"""The phases of a run, as its clock books them."""


class Job(NamedTuple):
    """All that a training needs: settings, data, and Algorithm 2 for all its seeds."""

    config: ExperimentConfig
    env: Environment
    fit: Fit
    mesh: Mesh
    learner: Learner
    augmentation: Augmentation | None
    prior: Any
    trainer: Trainer

    @property
    def seeds(self) -> np.ndarray:
        """The policy seeds."""
        return np.arange(self.config.seed, self.config.seed + self.config.num_seeds)


def make_job(config: ExperimentConfig, env: Environment, fit: Fit, mesh: Mesh) -> Job:
    """Puts a run's learner and augmentation together."""
    inputs = standardised_inputs(fit.dataset.steps) if config.standardise else raw_inputs(env.spec)
    learner = make_learner(config.algorithm, config.learner, env.spec, inputs)
    augmentation, prior = _augmentation(config, env, fit, learner)
    single = make_trainer(env, learner, augmentation, config.training, config.num_seeds // mesh.size)
    return Job(config, env, fit, mesh, learner, augmentation, prior, across_seeds(single, mesh))


def _augmentation(
    config: ExperimentConfig, env: Environment, fit: Fit, learner: Learner
) -> tuple[Augmentation | None, Any]:
    """The source of synthetic trajectories, and the fitted models that it samples from."""
    rollout = config.training.horizon, config.rollout_noise, config.rollout_segments
    match config.augmentation:
        case "coda":
            assert isinstance(fit.prior, Prior)
            return coda(config, env, fit.model, learner, fit.prior, fit.dynamics)
        case "unconditional":
            return unconditional(fit.model), fit.prior
        case "model":
            one_step = make_dynamics(env.spec, config.dynamics)
            return model_rollouts(env, one_step, learner, *rollout), fit.dynamics
        case "simulated":
            return oracle(env, learner, *rollout), ()
    return None, ()


def initial_state(job: Job) -> TrainingState:
    """The state of all seeds before training, sharded over the mesh."""
    return jax.jit(job.trainer.init)(seed_keys(job.seeds, job.mesh))


class Training:
    """A training under way: its state, its compiled round, and the measurements so far."""

    def __init__(self, job: Job, folder: RunFolder, checkpoints: Checkpoints, clock: Clock):
        """Compiles the round, for the state before training."""
        self.job, self.folder, self.checkpoints, self.clock = job, folder, checkpoints, clock
        self.schedule = [r._replace(plan=replicated(r.plan, job.mesh)) for r in job.trainer.schedule]
        with phase("compiling"):
            self.state = initial_state(job)
            inputs = (self.state, job.fit.dataset, job.prior, self.schedule[0].plan)
            self._round = jax.jit(job.trainer.round, donate_argnums=0).lower(*inputs).compile()
        clock.lap("compile")
        num_reference = self.state.reference.reward.shape[1]
        self._num_measured = min(WINDOWS, len(job.seeds) * num_reference)
        self._meter = quality_meter(job.env, job.fit.held_out, self._num_measured) if is_first() else _no_quality
        self.times = {"evaluate": 0.0, "generate": 0.0}
        self.first_quality: Quality = {}

    def play(self, scheduled: ScheduledRound) -> Report:
        """Plays a round.

        Raises:
            UserError: NaNs, before anything of the round is recorded.
        """
        state, report = self._round(self.state, self.job.fit.dataset, self.job.prior, scheduled.plan)
        report = gathered(report)
        for name in ("generate", "update", "evaluate"):
            broken = self.job.seeds[~report.finite[name]]
            if broken.size:
                raise UserError(
                    f"NaN in round {scheduled.number}, phase {name}, seed {broken[0]}; "
                    "the run folder keeps the rounds before"
                )
        self.state = state
        return report

    def start(self) -> None:
        """Plays round 0: the untrained policy and the first synthetic data, each timed by a call of its own."""
        if is_first():
            self.folder.metrics.restore("")
        self.clock.lap()
        for scheduled in self.schedule:
            if scheduled.number > 0:
                break
            report = self.play(scheduled)
            self.times[scheduled.kind] = self.clock.lap(scheduled.kind)
            if scheduled.kind == "evaluate":
                self._record(0, report)
        augmentation, training = self.job.augmentation, self.job.config.training
        if augmentation is not None and augmentation.guidance is not None and training.burn_in == 0:
            self.first_quality = self._measure({"guided, first round": self.state.synthetic})
            self.clock.lap("quality")
        self._save(0)

    def resume(self, restored: Restored) -> int:
        """Goes on from a checkpoint; returns the rounds done.

        Raises:
            UserError: the checkpoint learnt from other episodes, or with another denoiser.
        """
        notes, data, denoiser = restored.notes, self.job.fit.data, self.job.fit.denoiser
        if notes.get("data", data) != data:  # older checkpoints know neither this nor the quality
            raise UserError(
                f"{self.folder.path} has learnt from other episodes than the dataset holds now: machines of different "
                "kinds roll out different ones; go on where it was begun, or choose another --run-dir"
            )
        if notes.get("denoiser", denoiser) != denoiser:  # unknown to older checkpoints
            raise UserError(
                f"{self.folder.path} has learnt with another denoiser than the cache holds now; restore the cache of "
                "its start, or choose another --run-dir"
            )
        self.state, self.times, self.first_quality = restored.tree, notes["times"], notes.get("quality", {})
        self.clock.add(notes["seconds"])
        if is_first() and "metrics" in notes:
            self.folder.metrics.restore(notes["metrics"])
        elif is_first():  # an older checkpoint
            self.folder.metrics.cut_back(restored.step)
        self._save_policy(restored.step)
        return restored.step

    def train(self, done: int) -> None:
        """Plays the rounds after round `done`."""
        todo = [scheduled for scheduled in self.schedule if scheduled.number > done]
        with phase("training", total=self.job.config.training.num_rounds, done=done) as progress:
            for scheduled in todo:
                self.clock.lap()
                report = self.play(scheduled)
                self._book(self.clock.lap(), generated=bool(scheduled.plan.generate))
                self._record(scheduled.number, report)
                self._save(scheduled.number)
                progress.advance(note=f"return {report.returns.mean():.0f}")
        self.clock.lap()

    def quality(self) -> Quality | None:
        """Measures the last synthetic trajectories beside held-out data; None without any."""
        if self.job.augmentation is None:
            return None
        kinds = {
            "coda": {"guided": self.state.synthetic, "unguided": self.state.reference},
            "unconditional": {"unguided": self.state.reference},
            "model": {"by the model": self.state.synthetic},
            "simulated": {"simulated": self.state.synthetic},
        }
        real = real_trajectories(self.job.fit.held_out, self._num_measured)
        return {
            **self._measure(kinds[self.job.config.augmentation]),
            **self.first_quality,
            **self._meter(real),
        }

    def _measure(self, kinds: dict[str, Trajectory]) -> Quality:
        return self._meter({name: spread_over_seeds(t, self._num_measured) for name, t in kinds.items()})

    def _book(self, seconds: float, generated: bool) -> None:
        """Shares the seconds of a round out among its phases, by the times that round 0 measured."""
        share = {"generate": self.times["generate"] if generated else 0.0, "evaluate": self.times["evaluate"]}
        for name, value in share.items():
            self.clock.seconds[name] += value
        self.clock.seconds["train"] += max(seconds - sum(share.values()), 0.0)

    def _record(self, number: int, report: Report) -> None:
        if not is_first():
            return
        columns = {
            "updates": np.full(len(self.job.seeds), number * self.job.config.training.updates_per_round),
            "return": report.returns.mean(axis=1),
            "return_std": report.returns.std(axis=1),
            **report.metrics,
        }
        recorded = self.folder.metrics.columns  # a run that an older version began may lack the newer ones
        columns = {name: values for name, values in columns.items() if name in recorded or not recorded}
        self.folder.metrics.append(number, self.job.seeds, columns)

    def _save(self, number: int) -> None:
        digests = {"data": self.job.fit.data, "denoiser": self.job.fit.denoiser}
        notes = {"times": self.times, "quality": self.first_quality, "seconds": self.clock.seconds}
        self.checkpoints.save(number, self.state, {**notes, **digests, "metrics": self.folder.metrics.text})
        self._save_policy(number)

    def _save_policy(self, number: int) -> None:
        learner = self.state.learner
        gathered_parts = gathered({"inputs": learner.inputs, "policy": learner.policy})
        own = learner.replace(**jax.tree.map(jnp.asarray, gathered_parts))
        if is_first():
            policy = policy_of(self.job.env.spec, own, tuple(self.job.seeds.tolist()), number)
            save_policy(self.folder.path / FILE, policy)


def _no_quality(kinds: Mapping[str, Trajectory]) -> Quality:
    """The meter of the processes that record nothing."""
    del kinds
    return {}


def train_policies(job: Job, folder: RunFolder, checkpoints: Checkpoints, clock: Clock) -> dict[str, Any]:
    """Algorithm 2 for all seeds, from the last checkpoint on; the first process returns its part of the summary.

    Raises:
        UserError: NaNs in a round, whose checkpoint is not written; or a checkpoint that learnt from other episodes.
    """
    training = Training(job, folder, checkpoints, clock)
    restored = checkpoints.restore(training.state)
    done = 0
    if restored is None:
        training.start()
    else:
        done = training.resume(restored)
    training.train(done)
    quality = training.quality()
    clock.lap("quality")
    return _summary(job, folder, clock, training.times, quality) if is_first() else {}


def _summary(
    job: Job, folder: RunFolder, clock: Clock, times: dict[str, float], quality: Quality | None
) -> dict[str, Any]:
    config, num_seeds = job.config.training, len(job.seeds)
    metrics = folder.metrics.read()
    final = metrics["return"][metrics["round"] == config.num_rounds]
    updates = config.updates_per_round * config.num_rounds
    trajectories_per_second = None
    if job.augmentation is not None:
        trajectories_per_second = num_seeds * config.num_samples(job.augmentation) / times["generate"]
    return {
        "num_seeds": num_seeds,
        "seeds": job.seeds.tolist(),
        "updates": updates,
        "returns_per_seed": final.tolist(),
        "mean": float(final.mean()),
        "standard_error": float(final.std(ddof=1) / np.sqrt(num_seeds)) if num_seeds > 1 else None,
        "wall_seconds": {**clock.seconds, "total": sum(clock.seconds.values())},
        "updates_per_second": num_seeds * updates / max(clock.seconds["train"], 1e-9),
        "trajectories_per_second": trajectories_per_second,
        "sample_quality": quality,
    }
