"""The settings of `experiments.steering`, and their validation."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Interval, MinLen

from coda_jax.ranges import Count, NonNegative, NonNegativeCount, Ranged, RangeError, Seed, check_seeds
from experiments.host.errors import UserError
from experiments.pipeline.settings import (
    PRESETS,
    DatasetName,
    ExperimentConfig,
    PresetName,
    TaskName,
    check,
    check_choice,
    read_config,
)

SCHEDULES = ("annealed", "constant")

GUIDANCE = (0.0, *sorted([0.6, *(float(f"{10 ** (third / 3):.2g}") for third in range(-9, 7))]))
"""0, three scales a decade from 1e-3 to 1e2, and 0.6, the paper's choice (App. F, Table 3)."""


@dataclasses.dataclass(frozen=True)
class SteeringConfig(Ranged):
    """Measures trajectories steered toward a policy at initialisation and one trained on the data, against lambda."""

    run: Path | None = None
    """A finished run folder that provides data, denoiser and policies; by default this command trains policies."""
    task: TaskName = "2halfcheetah"
    """Task; not used with `--run`."""
    dataset: DatasetName = "replay"
    """Dataset; not used with `--run`."""
    preset: PresetName = "laptop"
    """Preset that sets the denoiser and the learner; not used with `--run`."""
    num_updates: Count = 10_000
    """Learner updates of the trained policies, on recorded data only, in whole rounds; not used with `--run`."""
    num_seeds: Count = 8
    """Policy seeds: `seed`, `seed + 1`, ...; not used with `--run`."""
    seed: Seed = 0
    """First seed; not used with `--run`."""
    fit_seed: Seed | None = None
    """Seed of the denoiser's fit; by default that of the run, or 0."""
    through_denoiser: bool | None = None
    """Whether guidance is carried back through the denoiser; by default as in the run or the preset."""
    solver: Literal["heun", "dpm++"] | None = None
    """Solver of the sampler; by default as in the run or the preset."""
    recorded_steps: NonNegativeCount | None = None
    """Tokens whose states and observations are held to a recorded window's; by default as in the run or the preset."""
    num_trajectories: Count = 2048
    """Trajectories per point and seed; 256 is enough on a laptop."""
    num_steps: Annotated[tuple[Annotated[int, Interval(ge=2, lt=2**31)], ...], MinLen(1)] = (32, 128)
    """Numbers of diffusion steps N."""
    schedules: Annotated[tuple[str, ...], MinLen(1)] = SCHEDULES
    """Guidance schedules: `annealed`, `constant`."""
    guidance: Annotated[tuple[NonNegative, ...], MinLen(2)] = GUIDANCE
    """Guidance scales lambda; the first must be 0, the reference for all others."""
    scales_per_call: Count = 1
    """Guidance scales sampled in one vmapped call; more are faster on a device that is not fully used."""
    run_dir: Path | None = None
    """Run folder; by default named by the settings, below `runs/`. The same command continues its run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(self.seed, self.num_seeds)
        if self.guidance[0] != 0.0 or len(set(self.guidance)) < len(self.guidance):
            raise RangeError("guidance", self.guidance, "it must be 0 and then other positive numbers")


def base_of(config: SteeringConfig) -> ExperimentConfig:
    """The settings of the `experiments.mamujoco` run that provides the denoiser and the policies.

    Raises:
        UserError: a setting is invalid, or the run is not finished.
    """
    for schedule in config.schedules:
        check_choice("--schedules", schedule, SCHEDULES)
    if config.run is not None:
        if not (config.run / "summary.json").exists():
            raise UserError(f"{config.run} is no finished run: it has no summary.json")
        base = read_config(config.run / "config.yaml")
        base = base if config.fit_seed is None else dataclasses.replace(base, fit_seed=config.fit_seed)
        return _guided(base, config)
    check_choice("--preset", config.preset, tuple(PRESETS))
    preset = PRESETS[config.preset]
    updates_per_round = preset.training.epochs_per_round * preset.training.updates_per_epoch
    rounds = math.ceil(config.num_updates / updates_per_round)
    base = dataclasses.replace(
        preset,
        task=config.task,
        dataset=config.dataset,
        augmentation="none",
        num_seeds=config.num_seeds,
        seed=config.seed,
        fit_seed=config.fit_seed or 0,
        training=dataclasses.replace(preset.training, num_rounds=rounds),
    )
    check(base)
    return _guided(base, config)


def _guided(base: ExperimentConfig, config: SteeringConfig) -> ExperimentConfig:
    asked = {"through_denoiser": config.through_denoiser, "solver": config.solver}
    changes = {name: value for name, value in asked.items() if value is not None}
    base = dataclasses.replace(base, diffusion=dataclasses.replace(base.diffusion, **changes))
    if config.recorded_steps is None:
        return base
    keeps_actions = base.recorded_actions and config.recorded_steps > 1
    base = dataclasses.replace(base, recorded_steps=config.recorded_steps, recorded_actions=keeps_actions)
    check(base)
    return base
