"""The settings of a run on MaMuJoCo, its presets, and their validation."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from coda_jax import presets
from coda_jax.backend import Precision
from coda_jax.data.teams import named_datasets
from coda_jax.diffusion.generator import GeneratorConfig
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.envs.mamujoco import TASKS
from coda_jax.marl.maddpg_bc import MaddpgBcConfig
from coda_jax.presets import Preset
from coda_jax.schedule import CodaConfig
from experiments.host.errors import UserError

_LAPTOP = presets.PRESETS["laptop"]

AUGMENTATIONS = ("coda", "unconditional", "none", "simulated")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where trajectories come from."""

    num_episodes: int = _LAPTOP.num_episodes
    """Episodes of a named dataset, rolled out from the behaviour teams on first use."""
    max_transitions: int | None = None
    """At most so many steps of a vault, in whole episodes spread evenly over it; by default it is used whole."""
    held_out_fraction: float = 0.1
    """Share of the episodes that neither transform, denoiser nor learner sees; they measure the fit."""
    uniform_unbounded: bool = False
    """Whether the denoiser sees unbounded features uniform, as in App. E.2, rather than with a logit like the rest."""


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """CODA on a MaMuJoCo task: fits a diffusion model to a dataset and trains MADDPG+BC with its samples."""

    task: str = "2halfcheetah"
    """Task: `2halfcheetah`, `4ant` (of which there is `replay` only), or with `--vault` any other."""
    dataset: str = "replay"
    """Dataset: `replay`, `good`, `medium` or `poor`."""
    vault: Path | None = None
    """An OG-MARL vault to use instead of a named dataset: its folder, such as `.../Replay.vlt`, or the one inside."""
    augmentation: str = "coda"
    """Synthetic data: `coda` (guided toward the joint policy), `unconditional` (sampled once, unguided), `none` (no
    denoiser is fitted), or `simulated`: the policy's own roll-outs in the simulator, as a perfect prior would give."""
    guidance: float = 0.6
    """Guidance scale lambda; only `coda` is guided."""
    num_seeds: int = _LAPTOP.num_seeds
    """Policy seeds, trained together: `seed`, `seed + 1`, ..."""
    seed: int = 0
    """First seed."""
    fit_seed: int = 0
    """Seed of the denoiser's fit, which all policy seeds share: they do not sample its variance, this does."""
    preset: str = "laptop"
    """Sizes of everything: `smoke` (a look), `laptop` (20 minutes on two cores) or `paper` (for an accelerator)."""
    precision: Precision = "highest"
    """Precision of the networks' matrix products on an accelerator: `highest` (float32), `high` (TF32 on a GPU, three
    passes of bfloat16 on a TPU) or `default` (TF32 or bfloat16). Physics, evaluation and a CPU always use float32."""
    run_dir: Path | None = None
    """Run folder; by default named by the settings, below `runs/`. The same command continues its run."""
    allow_other_devices: bool = False
    """Continue a run that began on another number of devices, although that changes last bits."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """Where trajectories come from."""
    diffusion: SamplerConfig = _LAPTOP.sampler
    """Sampling (Algorithm 1)."""
    denoiser: GeneratorConfig = _LAPTOP.generator
    """The diffusion model and its fit."""
    learner: MaddpgBcConfig = _LAPTOP.learner
    """MADDPG+BC."""
    standardise: bool = _LAPTOP.standardise
    """Whether the learner's networks see inputs in standard deviations from the dataset's mean; not in the paper."""
    training: CodaConfig = _LAPTOP.training
    """Algorithm 2."""


def _experiment(name: str, preset: Preset) -> ExperimentConfig:
    return ExperimentConfig(
        num_seeds=preset.num_seeds,
        preset=name,
        data=DataConfig(num_episodes=preset.num_episodes),
        diffusion=preset.sampler,
        denoiser=preset.generator,
        learner=preset.learner,
        standardise=preset.standardise,
        training=preset.training,
    )


PRESETS: dict[str, ExperimentConfig] = {name: _experiment(name, preset) for name, preset in presets.PRESETS.items()}
"""Complete settings to start from; flags override them one by one."""


def uses(augmentation: str, setting: str) -> bool:
    """Whether a setting, by its dotted name, has a part in the numbers of a run with that augmentation."""
    if augmentation == "coda":
        return setting != "training.static_trajectories"
    if augmentation == "unconditional":
        of_guidance = ("guidance", "diffusion.guidance_schedule", "diffusion.through_denoiser")
        return setting not in (*of_guidance, "training.num_trajectories")
    unused = {"guidance", "fit_seed", "data.uniform_unbounded", "training.static_trajectories"}
    if augmentation == "none":
        unused |= {"training.mix_ratio", "training.chunk_size", "training.num_trajectories", "training.burn_in"}
    return setting not in unused and not setting.startswith(("diffusion.", "denoiser."))


def read_config(path: Path) -> ExperimentConfig:
    """Reads the `config.yaml` of a run; settings that were added since are those of its preset.

    Raises:
        UserError: the file is missing, cannot be read, or has settings that are unknown here.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return replace_nested(PRESETS[values["preset"]], values)
    except FileNotFoundError:
        raise UserError(f"{path.parent} is no run folder: it has no {path.name}") from None
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no configuration of a run: {' '.join(str(error).split())}") from error


def replace_nested(config: Any, values: Mapping[str, Any]) -> Any:
    """The dataclass with the values of a nested mapping, as `experiments.host.cache.plain` writes them."""

    def convert(current: Any, value: Any, name: str) -> Any:
        if dataclasses.is_dataclass(current):
            return replace_nested(current, value)
        if isinstance(current, tuple):
            return tuple(value)
        return Path(value) if name in ("vault", "run_dir") and value is not None else value

    return dataclasses.replace(
        config, **{name: convert(getattr(config, name, None), value, name) for name, value in values.items()}
    )


def check(config: ExperimentConfig) -> None:
    """Refuses settings that cannot run.

    Raises:
        UserError: names the first such setting, its value, and what it may be.
    """
    check_choice("--task", config.task, tuple(TASKS))
    if config.vault is None:
        check_dataset(config.task, config.dataset)
        if config.data.max_transitions is not None:
            raise UserError("--data.max-transitions is for --vault; --data.num-episodes sizes a named dataset")
    check_choice("--augmentation", config.augmentation, AUGMENTATIONS)
    if not (math.isfinite(config.guidance) and config.guidance >= 0):
        raise UserError(f"--guidance is {config.guidance}; it must be a finite number, zero or larger")
    positive = {
        "--num-seeds": config.num_seeds,
        "--data.num-episodes": config.data.num_episodes,
        "--denoiser.num-updates": config.denoiser.num_updates,
        "--denoiser.batch-size": config.denoiser.batch_size,
        "--training.batch-size": config.training.batch_size,
        "--training.num-rounds": config.training.num_rounds,
        "--training.epochs-per-round": config.training.epochs_per_round,
        "--training.updates-per-epoch": config.training.updates_per_epoch,
        "--training.num-trajectories": config.training.num_trajectories,
        "--training.static-trajectories": config.training.static_trajectories,
        "--training.chunk-size": config.training.chunk_size,
        "--training.evaluation-episodes": config.training.evaluation_episodes,
    }
    if config.data.max_transitions is not None:
        positive["--data.max-transitions"] = config.data.max_transitions
    check_positive(positive)
    if config.training.horizon < 2:
        raise UserError(
            f"--training.horizon is {config.training.horizon}; it must be at least 2, a step and where it leads"
        )
    for flag, seed in {"--seed": config.seed, "--fit-seed": config.fit_seed}.items():
        if seed < 0:
            raise UserError(f"{flag} is {seed}; it must be zero or larger")
    if not 0 <= config.training.burn_in < config.training.num_rounds:
        raise UserError(
            f"--training.burn-in is {config.training.burn_in}; it must be zero or larger, and leave some of the "
            f"{config.training.num_rounds} rounds"
        )
    if not 0.0 <= config.training.mix_ratio <= 1.0:
        raise UserError(f"--training.mix-ratio is {config.training.mix_ratio}; it must lie between 0 and 1")
    if config.training.mix_ratio > 0.0 and not round(config.training.mix_ratio * config.training.batch_size):
        raise UserError(
            f"--training.mix-ratio {config.training.mix_ratio} of {config.training.batch_size} trajectories rounds to "
            "none; give 0, or at least one trajectory's share"
        )
    if not 0.0 < config.data.held_out_fraction < 1.0:
        raise UserError(f"--data.held-out-fraction is {config.data.held_out_fraction}; it must lie inside (0, 1)")


def check_dataset(task: str, dataset: str) -> None:
    """Refuses a dataset that cannot be rolled out for a task, by a `UserError`."""
    if not named_datasets(task):
        raise UserError(f"--task {task} has no behaviour teams, so no named datasets; give a --vault")
    check_choice("--dataset", dataset, named_datasets(task))


def check_positive(values: Mapping[str, int]) -> None:
    """Refuses values below 1, by a `UserError` that names the first such flag."""
    for flag, value in values.items():
        if value < 1:
            raise UserError(f"{flag} is {value}; it must be at least 1")


def check_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a value that is not among the choices, by a `UserError`."""
    if value not in choices:
        raise UserError(f"{flag} is '{value}'; choose one of: {', '.join(choices)}")
