"""The settings of a run on MaMuJoCo, its presets, and their validation."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from coda_jax import presets
from coda_jax.augmentation.adaptive_guidance import AdaptiveGuidance
from coda_jax.backend import Precision
from coda_jax.data.teams import named_datasets
from coda_jax.diffusion.generator import GeneratorConfig
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.dynamics.ensemble import DynamicsConfig, make_dynamics
from coda_jax.envs.mamujoco import TASKS, make
from coda_jax.presets import Preset
from coda_jax.ranges import (
    Count,
    NonNegative,
    NonNegativeCount,
    Positive,
    PositiveShare,
    Ranged,
    RangeError,
    Seed,
    check_seeds,
)
from coda_jax.schedule import CodaConfig
from experiments.host.accelerators import Machine
from experiments.host.cache import flat, plain
from experiments.host.errors import UserError
from experiments.host.help_text import choices
from experiments.host.loggers import check_logger
from experiments.host.records import parse_mapping
from experiments.host.yaml_files import parse_yaml
from experiments.pipeline.guidance import AUTO, GUIDANCE, check_guidance, guidance_scale
from experiments.pipeline.learners import ALGORITHMS, DEFAULT_ALGORITHM, LearnerSettings, check_learner

DEFAULT_PRESET = "tuned"

_USUAL = presets.PRESETS[DEFAULT_PRESET]
_LEARNER = LearnerSettings(**vars(_USUAL.learner))

AUGMENTATIONS = ("coda", "unconditional", "none", "model", "simulated")

ROWS = ("critic_rows", "actor_rows", "cloning_rows")
"""The settings that choose the rows of a mini-batch."""

CLUSTER = "cluster"
"""The coordinator of processes that find each other by the environment of a cluster."""

OF_GUIDED_TRAJECTORIES = (
    "recorded_steps",
    "recorded_actions",
    "consequences",
    "score_weight",
    "inpainting_passes",
    "inpainting_sigma",
    "keep_fraction",
)
"""Settings that no other augmentation than `coda` has."""

CONSEQUENCES = {
    "score_weight": "score",
    "inpainting_passes": "inpaint",
    "inpainting_sigma": "inpaint",
    "rollout_segments": "model",
}
"""The source of consequences that a setting of guided trajectories belongs to."""

OF_SYNTHETIC_DATA = {
    f"training.{name}"
    for name in ("mix_ratio", "burn_in", "num_trajectories", "chunk_size", "reference_trajectories", "reuse", *ROWS)
}
"""Settings without effect where no data are synthetic."""


@dataclasses.dataclass(frozen=True)
class DataConfig(Ranged):
    """The dataset."""

    num_episodes: Count = _USUAL.num_episodes
    """Episodes of a named dataset, rolled out from the behaviour teams on first use."""
    max_transitions: Count | None = None
    """At most so many steps of a vault, in random whole episodes, the same in all runs; by default the whole vault."""
    held_out_fraction: Annotated[float, Interval(gt=0.0, lt=1.0)] = 0.1
    """Fraction of the episodes held out from transform, denoiser and learner, to measure the fit."""
    uniform_unbounded: bool = False
    """Whether unbounded features stay uniform after the CDF, as in App. E.2; otherwise all features take the logit."""


TaskName = Annotated[str, choices(TASKS)]
DatasetName = Annotated[str, choices(named_datasets("2halfcheetah"))]
PresetName = Annotated[str, choices(presets.PRESETS)]


@dataclasses.dataclass(frozen=True)
class ExperimentConfig(Ranged):
    """CODA on a MaMuJoCo task: fits a diffusion model to a dataset and trains a learner with its samples.

    `--config FILE` starts from the settings in the `config.yaml` of a run folder; the other flags override them.
    """

    task: TaskName = "2halfcheetah"
    """Task: `2halfcheetah`, `4ant` (dataset `replay` only), or any other with `--vault`."""
    dataset: DatasetName = "replay"
    """Dataset: mixed levels of the behaviour teams (`replay`), or one level."""
    vault: Path | None = None
    """An OG-MARL vault to use instead of a named dataset: its folder, such as `.../Replay.vlt`, or its subfolder."""
    augmentation: Annotated[str, choices(AUGMENTATIONS)] = "coda"
    """Synthetic data. `coda`: guided toward the joint policy. `unconditional`: sampled once, unguided.
    `none`: no augmentation, no denoiser is fitted. `model`: the policy's roll-outs in a one-step model fitted to the
    data, from recorded states, without a denoiser; not in the paper. `simulated`: the oracle, the policy's roll-outs in
    the simulator."""
    guidance: NonNegative | Literal["auto"] = _USUAL.guidance
    """Guidance scale lambda; only `coda` is guided. `auto` adapts it in every round, for each seed by itself, until the
    synthetic actions have the spread of `--guidance-target`; not in the paper."""
    guidance_target: Positive = AUTO.target
    """With `--guidance auto`: root mean square deviation of the synthetic actions from the policy's; actions are in
    [-1, 1]."""
    guidance_start: Annotated[float, Interval(ge=AUTO.lowest, le=AUTO.highest)] = AUTO.start
    """With `--guidance auto`: lambda of the first generation."""
    recorded_steps: NonNegativeCount = _USUAL.recorded_steps
    """Tokens of a guided trajectory whose states and observations are held to a recorded window's; not in the paper."""
    recorded_actions: bool = False
    """Whether the tokens before the last held one keep their recorded actions and rewards too; not in the paper."""
    consequences: Literal["denoiser", "model", "score", "inpaint"] = _USUAL.consequences
    """Source of a guided trajectory's states and rewards. `denoiser`: sampled with the actions, as in the paper.
    `model`: a one-step model fitted to the data continues each trajectory from its first state, or with
    `--recorded-actions` from the last recorded one. `score`: sampled with the actions, and guided by the score of the
    one-step model. `inpaint`: sampled again by the denoiser, with start and actions held."""
    score_weight: NonNegative = 1.0
    """With `--consequences score`, largest length of the one-step model's guidance direction; the policy's has 1."""
    inpainting_passes: Count = 2
    """With `--consequences inpaint`, times that all but start and actions is noised and denoised."""
    inpainting_sigma: Positive = 1.0
    """With `--consequences inpaint`, the noise level of these passes; features have a standard deviation of 1."""
    keep_fraction: PositiveShare = 1.0
    """Share of the guided trajectories that is kept, those that the members of a one-step model disagree with least;
    1 keeps all, and samples no others."""
    rollout_noise: NonNegative = _USUAL.rollout_noise
    """Standard deviation of noise on the actions that the one-step model, or the oracle, rolls out, or on those of the
    denoiser, whose next states and rewards do not follow the noise."""
    rollout_segments: Count = 1
    """Trajectories that a roll-out of the one-step model, or of the oracle, yields one after the other; the later ones
    start where the policy has come to, not in a recorded state."""
    algorithm: Annotated[str, choices(ALGORITHMS)] = DEFAULT_ALGORITHM
    """Learner: `maddpg_bc` (the paper's MADDPG+BC), `iddpg_bc` (independent critics) or `maddpg_cql` (conservative
    Q-learning in place of cloning)."""
    num_seeds: Count = _USUAL.num_seeds
    """Policy seeds, trained together: `seed`, `seed + 1`, ..."""
    seed: Seed = 0
    """First seed."""
    fit_seed: Seed = 0
    """Seed of the denoiser's fit, which all policy seeds share; vary it to measure the variance between fits."""
    preset: PresetName = DEFAULT_PRESET
    """Set of defaults: `smoke` (a quick check, two minutes on two cores), `laptop` (the paper's algorithm in 20 minutes
    on two cores), `tuned` and `plus` (the same sizes with changes of our own) or `paper` (for an accelerator)."""
    precision: Precision = "highest"
    """Precision of the networks' matrix products on an accelerator: `highest` (float32), `high` (TF32 on a GPU, three
    passes of bfloat16 on a TPU) or `default` (TF32 or bfloat16). Physics, evaluation and a CPU always use float32."""
    run_dir: Path | None = None
    """Run folder; by default named by the settings, below `runs/`. The same command continues its run."""
    log: Literal["tensorboard", "wandb"] | None = None
    """Logger beside `metrics.csv`, by the extra `coda-jax[log]`; with `WANDB_MODE=offline`, wandb needs no network."""
    allow_other_devices: bool = False
    """Resume a run that was started on another number of devices, although the last bits will differ."""
    coordinator: str | None = None
    """Train the seeds on several hosts, one process on each: `HOST:PORT` of process 0, the same in all; or `cluster`,
    for all three settings from Slurm (`srun`), Open MPI or another environment that JAX knows."""
    num_processes: Count | None = None
    """With `--coordinator HOST:PORT`: the number of processes."""
    process_id: NonNegativeCount | None = None
    """With `--coordinator HOST:PORT`: the number of this process, 0 on HOST."""
    estimate: Machine | None = None
    """Instead of a run, print its expected cost for each phase on `this` machine or on one accelerator: operations,
    bytes, memory, time. Programs are compiled, none is run, and the run folder is not touched."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """The dataset."""
    diffusion: SamplerConfig = _USUAL.sampler
    """Sampling (Algorithm 1)."""
    denoiser: GeneratorConfig = _USUAL.generator
    """The diffusion model and its fit."""
    dynamics: DynamicsConfig = _USUAL.dynamics
    """The one-step model and its fit, for `--augmentation model`, `--consequences model` or `score`, and
    `--keep-fraction`."""
    learner: LearnerSettings = _LEARNER
    """The learner; settings that the algorithm does not use are refused."""
    standardise: bool = _USUAL.standardise
    """Whether the learner's inputs are standardised by the dataset's mean and standard deviation; not in the paper."""
    training: CodaConfig = _USUAL.training
    """Algorithm 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(self.seed, self.num_seeds)

    @property
    def guidance_scale(self) -> float | AdaptiveGuidance:
        """The scale lambda, or the settings by which it is adapted."""
        return guidance_scale(self.guidance, self.guidance_target, self.guidance_start)


def _experiment(name: str, preset: Preset) -> ExperimentConfig:
    return ExperimentConfig(
        num_seeds=preset.num_seeds,
        preset=name,
        guidance=preset.guidance,
        recorded_steps=preset.recorded_steps,
        consequences=preset.consequences,
        rollout_noise=preset.rollout_noise,
        data=DataConfig(num_episodes=preset.num_episodes),
        diffusion=preset.sampler,
        denoiser=preset.generator,
        dynamics=preset.dynamics,
        learner=LearnerSettings(**vars(preset.learner)),
        standardise=preset.standardise,
        training=preset.training,
    )


PRESETS: dict[str, ExperimentConfig] = {name: _experiment(name, preset) for name, preset in presets.PRESETS.items()}
"""Complete settings; flags override single ones."""

OF_OLDER_RUNS = PRESETS["laptop"]
"""The values of settings that a run of an older version does not name: this preset leaves newer ones unused."""


def uses(augmentation: str, setting: str) -> bool:
    """Whether a setting, by its dotted name, affects the numbers of a run with that augmentation."""
    if augmentation == "coda":
        return setting != "training.static_trajectories"
    if setting in ("rollout_noise", "rollout_segments"):
        return augmentation in ("model", "simulated")
    if setting.startswith("dynamics."):
        return augmentation == "model"
    if setting in OF_GUIDED_TRAJECTORIES:
        return False
    if augmentation == "unconditional":
        of_guidance = (*GUIDANCE, "diffusion.guidance_schedule", "diffusion.through_denoiser")
        return setting not in (*of_guidance, "training.num_trajectories")
    unused = {*GUIDANCE, "data.uniform_unbounded", "training.static_trajectories"}
    if augmentation != "model":
        unused.add("fit_seed")
    if augmentation == "none":
        unused |= OF_SYNTHETIC_DATA
    return setting not in unused and not setting.startswith(("diffusion.", "denoiser."))


def not_used_by(config: ExperimentConfig, setting: str) -> str | None:
    """What has no use for a setting, by its dotted name, in a run: a flag or the main job; None if it affects numbers.

    The settings of learners are left to `check_learner`.
    """
    if config.vault is not None and setting in ("dataset", "data.num_episodes"):
        return "--vault"
    if not uses(config.augmentation, setting):
        return f"--augmentation {config.augmentation}"
    if setting in ("denoiser.condition_dim", "denoiser.condition_dropout"):
        return "the main job"
    source = CONSEQUENCES.get(setting) if config.augmentation == "coda" else None
    is_of_dynamics = setting.startswith("dynamics.") and not needs_dynamics(config)
    if is_of_dynamics or source not in (None, config.consequences):
        return f"--consequences {config.consequences}"
    return None


def needs_denoiser(config: ExperimentConfig) -> bool:
    """Whether a run samples from a denoiser."""
    return config.augmentation in ("coda", "unconditional")


def needs_dynamics(config: ExperimentConfig) -> bool:
    """Whether a run samples with a one-step model."""
    is_followed = config.consequences in ("model", "score") or config.keep_fraction < 1.0
    return config.augmentation == "model" or (config.augmentation == "coda" and is_followed)


def read_config(path: Path) -> ExperimentConfig:
    """Reads the `config.yaml` of a run; settings that were added since are as in `OF_OLDER_RUNS`.

    Raises:
        UserError: the file is missing, cannot be read, is damaged, or has settings that are unknown here.
    """
    try:
        values = parse_mapping(path, parse_yaml, {"preset": str}, "restore it, or name another run")
        if values["preset"] not in PRESETS:
            raise ValueError(f"preset {values['preset']} is none of {', '.join(PRESETS)}")
        return replace_nested(OF_OLDER_RUNS, values)
    except FileNotFoundError:
        raise UserError(f"{path.parent} is no run folder: it has no {path.name}") from None
    except (ValueError, KeyError, TypeError) as error:
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


def check_used(config: ExperimentConfig) -> None:
    """Refuses settings that differ from the preset's although they affect no number, by a `UserError`."""
    usual = flat(plain(PRESETS[config.preset]))
    for name, value in flat(plain(config)).items():
        user = not_used_by(config, name)
        if user is not None and value != usual[name]:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} is {value}, but {user} does not use it; leave it at {usual[name]}")


def check(config: ExperimentConfig) -> None:
    """Refuses settings that cannot run.

    Raises:
        UserError: names the first such setting, its value, and the valid values.
    """
    check_choice("--task", config.task, tuple(TASKS))
    if config.vault is None:
        check_dataset(config.task, config.dataset)
        if config.data.max_transitions is not None:
            raise UserError("--data.max-transitions is for --vault; --data.num-episodes sizes a named dataset")
    check_choice("--augmentation", config.augmentation, AUGMENTATIONS)
    if config.augmentation != "none":
        try:
            config.training.check_share()
        except RangeError as error:
            raise UserError(f"--training.mix-ratio {error.problem}") from error
        check_rows(config.training)
    check_choice("--algorithm", config.algorithm, ALGORITHMS)
    check_learner(config.algorithm, config.learner, PRESETS[config.preset].learner)
    total, decay = config.training.num_rounds * config.training.updates_per_round, config.learner.decay_updates
    if 0 < decay < total:
        raise UserError(
            f"--learner.decay-updates is {decay}, after which nothing is learned, but the run has {total} updates; "
            f"give 0 or at least {total}"
        )
    if config.augmentation == "coda":
        check_guidance(config.guidance, config.guidance_target, config.guidance_start, config.rollout_noise)
    for flag, value, least in (
        ("--training.horizon", config.training.horizon, 2),
        ("--training.evaluation-episodes", config.training.evaluation_episodes, 1),
    ):
        if value < least:
            raise UserError(f"{flag} is {value}; it must be at least {least}")
    if config.recorded_actions and config.recorded_steps < 2:
        raise UserError(
            "--recorded-actions keeps those before the last recorded step; it needs --recorded-steps of 2 or more"
        )
    if config.recorded_actions and config.rollout_segments > 1:
        raise UserError("--recorded-actions keeps the first steps of every trajectory; use --rollout-segments 1")
    if config.recorded_steps > config.training.horizon:
        raise UserError(
            f"--recorded-steps is {config.recorded_steps}; it must be at most the horizon, {config.training.horizon}"
        )
    if config.consequences == "inpaint":
        low, high = config.diffusion.sigma_min, config.diffusion.sigma_max
        if not low < config.inpainting_sigma <= high:
            raise UserError(
                f"--inpainting-sigma is {config.inpainting_sigma:g}; it must be above --diffusion.sigma-min, {low:g}, "
                f"and at most --diffusion.sigma-max, {high:g}"
            )
    if config.dynamics.reward_inputs:
        try:
            make_dynamics(make(config.task).spec, config.dynamics)
        except RangeError as error:
            raise UserError(f"--dynamics.reward-inputs {error.problem}") from error
    if config.log is not None:
        check_logger(config.log)
    check_processes(config)


def check_rows(training: CodaConfig) -> None:
    """Refuses rows of a kind that no mini-batch has, by a `UserError`."""
    num_synthetic, size = training.synthetic_per_batch, training.batch_size
    missing = {"recorded": num_synthetic == size, "synthetic": num_synthetic == 0}
    for name in ROWS:
        kind = getattr(training, name)
        if missing.get(kind):
            raise UserError(
                f"--training.{name.replace('_', '-')} is {kind}, but with --training.mix-ratio {training.mix_ratio:g} "
                f"{num_synthetic} of {size} rows are synthetic; use all, or another mix ratio"
            )


def check_processes(config: ExperimentConfig) -> None:
    """Refuses settings of processes that cannot train together, by a `UserError`."""
    coordinator, count, number = config.coordinator, config.num_processes, config.process_id
    if coordinator is None or coordinator == CLUSTER:
        if count is not None or number is not None:
            raise UserError("--num-processes and --process-id go with --coordinator HOST:PORT")
        return
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator is '{coordinator}'; give HOST:PORT, or {CLUSTER}")
    if count is None or number is None:
        raise UserError(f"--coordinator {coordinator} needs --num-processes and --process-id")
    if number >= count:
        raise UserError(f"--process-id is {number}; with --num-processes {count} it must be at most {count - 1}")
    if config.num_seeds % count:
        raise UserError(f"--num-seeds {config.num_seeds} does not spread evenly over {count} processes")


def check_dataset(task: str, dataset: str) -> None:
    """Refuses a dataset that cannot be rolled out for a task, by a `UserError`."""
    if not named_datasets(task):
        raise UserError(f"--task {task} has no behaviour teams, so no named datasets; give a --vault")
    check_choice("--dataset", dataset, named_datasets(task))


def check_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a value that is not among the choices, by a `UserError`."""
    if value not in choices:
        raise UserError(f"{flag} is '{value}'; choose one of: {', '.join(choices)}")
