"""The settings of the coordination command, and the methods that it compares."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Interval, MinLen

from coda_jax.augmentation.adaptive_guidance import AdaptiveGuidance
from coda_jax.data.coordination import SameSideData
from coda_jax.data.reacher import ReacherData
from coda_jax.data.spread import SpreadData
from coda_jax.diffusion.generator import GeneratorConfig
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.diffusion.unet import UNetConfig
from coda_jax.dynamics.ensemble import DynamicsConfig
from coda_jax.envs.coordination import EPISODE_LENGTH, SameSide
from coda_jax.envs.robots import REACHER
from coda_jax.envs.simple_spread import EPISODE_LENGTH as SPREAD_LENGTH
from coda_jax.ranges import Count, NonNegative, Positive, Ranged, Seed, Share, check_seeds
from coda_jax.schedule import CodaConfig
from experiments.host.accelerators import Machine
from experiments.host.errors import UserError
from experiments.host.help_text import choices
from experiments.pipeline.guidance import AUTO, check_guidance, guidance_scale
from experiments.pipeline.learners import ALGORITHMS, DEFAULT_ALGORITHM, LearnerSettings, check_learner, is_of_algorithm
from experiments.pipeline.settings import check_choice, check_rows

REACHERS = ("2reacher-notip", "2reacher-first")

DATASETS = ("scripted", "expert", "medium", "random")

REWARD_INPUTS = ("all", "known")

LENGTHS = {"same-side": EPISODE_LENGTH, "spread": SPREAD_LENGTH}
"""Steps of an episode, of the tasks that are not Reachers."""

_SAMPLER = SamplerConfig(num_steps=12, solver="dpm++", sigma_min=0.05, sigma_max=40.0)
_GENERATOR = GeneratorConfig(
    unet=UNetConfig(width=64, channel_multipliers=(1, 1)), num_updates=3_000, batch_size=128, learning_rate=2e-3
)
_DYNAMICS = DynamicsConfig(widths=(128, 128), num_updates=4_000)
_PRECISE_DYNAMICS = DynamicsConfig(widths=(128, 128, 128), num_updates=6_000, variance_weight=1.0)
_LEARNER = LearnerSettings(
    critic_learning_rate=1e-3,
    policy_learning_rate=1e-3,
    target_rate=0.02,
    policy_linear_width=32,
    policy_hidden_width=32,
    critic_widths=(64, 64),
    critic_layer_norm=True,
)
_FAST_LEARNER = dataclasses.replace(_LEARNER, target_rate=0.05, critic_learning_rate=5e-3, policy_learning_rate=5e-3)
_TRAINING = CodaConfig(
    horizon=EPISODE_LENGTH,
    batch_size=16,
    epochs_per_round=1,
    updates_per_epoch=100,
    num_rounds=12,
    num_trajectories=128,
    static_trajectories=1024,
    chunk_size=512,
    evaluation_episodes=64,
    reference_trajectories=0,
)


class Method(NamedTuple):
    """A method of the comparison.

    augmentation:     the source of synthetic trajectories; `model` and `oracle` roll the policy out in the one-step
                      model and in the task.
    actor_teammates:  as in `MaddpgBcConfig`.
    is_split:         the actor's Q term on synthetic rows alone, cloning on recorded rows alone.
    recorded_steps:   tokens held to recorded states.
    through_denoiser: guidance carried back through the denoiser.
    by_model:         states and rewards of guided trajectories by the one-step model.
    """

    augmentation: Literal["none", "unconditional", "proximal", "guided", "model", "oracle"]
    actor_teammates: Literal["data", "current"] = "data"
    is_split: bool = False
    recorded_steps: int = 0
    through_denoiser: bool = False
    by_model: bool = False


METHODS = {
    "no augmentation": Method("none"),
    "joint-action actor": Method("none", actor_teammates="current"),
    "unconditional": Method("unconditional"),
    "PJAP": Method("proximal"),
    "CODA (paper)": Method("guided"),
    "CODA, split rows": Method("guided", is_split=True),
    "CODA, split rows, recorded starts": Method("guided", is_split=True, recorded_steps=1),
    "CODA, split rows, recorded starts, through": Method(
        "guided", is_split=True, recorded_steps=1, through_denoiser=True
    ),
    "CODA, recorded starts, by model": Method("guided", recorded_steps=1, by_model=True),
    "CODA, split rows, by model": Method("guided", is_split=True, by_model=True),
    "CODA+": Method("guided", is_split=True, recorded_steps=1, by_model=True),
    "model alone, split rows": Method("model", is_split=True),
    "oracle, split rows": Method("oracle", is_split=True),
}
"""By name. CODA+ has split rows, recorded starts and consequences by the one-step model; others leave some out."""


@dataclasses.dataclass(frozen=True)
class CoordinationConfig(Ranged):
    """Compares all methods on a small coordination task over time."""

    task: Annotated[str, choices((*LENGTHS, *REACHERS))] = "same-side"
    """Task; the other defaults depend on it."""
    num_agents: Annotated[int, Interval(ge=2, lt=2**31)] = 2
    """Number of agents."""
    half_width: Positive = 1.0
    """Same side: starts are uniform from minus this to this."""
    sharpness: Annotated[float, Interval(ge=1.0, lt=math.inf)] = 1.0
    """Same side: weight and exponent of the penalty for agents on different sides; at 1 the reward is the smooth
    product."""
    num_conventions: Annotated[int, Interval(ge=1, le=10)] = 2
    """Spread: number of conventions of the recorded teams."""
    dataset: Annotated[str, choices(DATASETS)] = "scripted"
    """Spread and Reacher: who records the episodes, `scripted` teams or the learned ones at a level of their training:
    `expert`, `medium` or `random`."""
    coverage: Share = 0.2
    """Fraction of recorded episodes in which the agents mix conventions."""
    noise: NonNegative = 0.3
    """Standard deviation of the noise on recorded actions."""
    num_episodes: Count = 2000
    """Number of recorded episodes."""
    algorithm: Annotated[str, choices(ALGORITHMS)] = DEFAULT_ALGORITHM
    """Learner: `maddpg_bc` (the paper's MADDPG+BC), `iddpg_bc` (independent critics) or `maddpg_cql` (conservative
    Q-learning in place of cloning)."""
    methods: Annotated[tuple[str, ...], MinLen(1)] = tuple(METHODS)
    """Methods to compare, by their names in the table; by default all."""
    num_seeds: Count = 16
    """Policy seeds per method: `seed`, `seed + 1`, ..."""
    seed: Seed = 0
    """First seed."""
    guidance: NonNegative | Literal["auto"] = 0.6
    """Guidance scale lambda of the CODA methods. `auto` adapts it in every round, for each seed by itself, until the
    synthetic actions have the spread of `--guidance-target`."""
    guidance_target: Positive = AUTO.target
    """With `--guidance auto`: root mean square deviation of the synthetic actions from the policy's; actions are in
    [-1, 1]."""
    guidance_start: Annotated[float, Interval(ge=AUTO.lowest, le=AUTO.highest)] = AUTO.start
    """With `--guidance auto`: lambda of the first generation."""
    run_dir: Path | None = None
    """Run folder; by default named by the settings, below `runs/`."""
    estimate: Machine | None = None
    """Instead of a run, print its expected cost for each phase on `this` machine or on one accelerator: operations,
    bytes, memory, time. Programs are compiled, none is run, and the run folder is not touched."""
    diffusion: SamplerConfig = _SAMPLER
    """Sampling (Algorithm 1)."""
    denoiser: GeneratorConfig = _GENERATOR
    """The diffusion model and its fit."""
    learner: LearnerSettings = _LEARNER
    """The learner; settings that the algorithm does not use are refused."""
    dynamics: DynamicsConfig = _DYNAMICS
    """The one-step model and its fit."""
    reward_inputs: Annotated[str, choices(REWARD_INPUTS)] = "all"
    """What the one-step model predicts the reward from: state and joint action (`all`), or what the task's reward is
    known to depend on alone (`known`): the positions after a step, and on Reacher the torques too."""
    rollout_noise: NonNegative = 0.2
    """Standard deviation of the noise on actions in roll-outs of the policy, by the oracle and in the model."""
    training: CodaConfig = _TRAINING
    """Algorithm 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(self.seed, self.num_seeds)
        _ = self.data  # refuses sizes that the data cannot have, before there is a run folder

    @property
    def guidance_scale(self) -> float | AdaptiveGuidance:
        """The scale lambda, or the settings by which it is adapted."""
        return guidance_scale(self.guidance, self.guidance_target, self.guidance_start)

    @property
    def data(self) -> SameSideData | SpreadData | ReacherData:
        """The distribution of the recorded episodes."""
        if self.task in REACHERS:
            return ReacherData(self.task, self.num_episodes, self.coverage, self.noise)
        if self.task == "spread":
            return SpreadData(self.num_agents, self.num_conventions, self.num_episodes, self.coverage, self.noise)
        task = SameSide(num_agents=self.num_agents, sharpness=self.sharpness, half_width=self.half_width)
        return SameSideData(task, num_episodes=self.num_episodes, coverage=self.coverage, noise=self.noise)


DEFAULTS = {
    "same-side": CoordinationConfig(),
    **{
        task: CoordinationConfig(
            task=task,
            coverage=0.0,
            noise=0.1,
            num_episodes=1000,
            rollout_noise=0.1,
            reward_inputs="known",
            dynamics=_PRECISE_DYNAMICS,
            learner=dataclasses.replace(_FAST_LEARNER, discount=0.95, alpha_bc=10.0),
            training=dataclasses.replace(
                _TRAINING, horizon=20, batch_size=32, updates_per_epoch=250, evaluation_episodes=16
            ),
        )
        for task in REACHERS
    },
    "spread": CoordinationConfig(
        task="spread",
        num_agents=3,
        coverage=0.0,
        reward_inputs="known",
        dynamics=dataclasses.replace(_PRECISE_DYNAMICS, widths=(256, 256, 256), num_updates=8_000),
        denoiser=dataclasses.replace(_GENERATOR, num_updates=2_000),
        learner=dataclasses.replace(_FAST_LEARNER, discount=0.9, alpha_bc=20.0),
        training=dataclasses.replace(_TRAINING, horizon=SPREAD_LENGTH, num_rounds=60),
    ),
}
"""The default settings of each task."""

_DIALS = {
    "num_agents": ("same-side", "spread"),
    "half_width": ("same-side",),
    "sharpness": ("same-side",),
    "num_conventions": ("spread",),
    "dataset": ("spread", *REACHERS),
}
"""The tasks that have a setting; those not named here are settings of all."""


def methods_of(config: CoordinationConfig) -> dict[str, Method]:
    """The methods of a comparison: independent critics see no teammates, so IDDPG+BC has no joint-action actor."""
    is_possible = is_of_algorithm(config.algorithm, "learner.actor_teammates")
    chosen = {name: METHODS[name] for name in config.methods}
    return {name: each for name, each in chosen.items() if is_possible or each.actor_teammates == "data"}


def check(config: CoordinationConfig) -> None:
    """Refuses settings that cannot run.

    Raises:
        UserError: names the first such setting, its value, and the valid values.
    """
    check_choice("--algorithm", config.algorithm, ALGORITHMS)
    for name in config.methods:
        check_choice("--methods", name, tuple(METHODS))
    default = DEFAULTS[config.task]
    check_guidance(config.guidance, config.guidance_target, config.guidance_start)
    check_learner(config.algorithm, config.learner, default.learner)
    for name, tasks in _DIALS.items():
        if config.task not in tasks and getattr(config, name) != getattr(default, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} is a setting of --task {' and '.join(tasks)}; leave it out of {config.task}")
    check_choice("--dataset", config.dataset, DATASETS)
    check_choice("--reward-inputs", config.reward_inputs, REWARD_INPUTS)
    if config.dynamics.reward_inputs:
        raise UserError("--dynamics.reward-inputs is set by --reward-inputs; leave it out")
    for name in ("num_agents", "num_conventions", "coverage") if config.dataset != "scripted" else ():
        if getattr(config, name) != getattr(default, name):
            raise UserError(f"--{name.replace('_', '-')} is a setting of scripted teams; leave it out")
    if config.learner.actor_teammates != "data":
        raise UserError("--learner.actor-teammates is set by the methods; leave it out")
    length = LENGTHS.get(config.task, REACHER.episode_length)
    if config.training.horizon > length or config.training.evaluation_episodes < 1:
        raise UserError(f"--training.horizon must be at most {length} and --training.evaluation-episodes at least 1")
    if not config.training.synthetic_per_batch:
        raise UserError(
            f"--training.mix-ratio is {config.training.mix_ratio}; it must give each mini-batch a synthetic trajectory"
        )
    check_rows(config.training)


def title_of(config: CoordinationConfig) -> str:
    """The task, its dials, and the learner where it is not the default."""
    learner = [] if config.algorithm == DEFAULT_ALGORITHM else [config.algorithm]
    return ", ".join([config.task, *dials_of(config.task, vars(config)), *learner])


def dials_of(task: str, settings: Mapping[str, Any]) -> list[str]:
    """The dials of a task's data, in words; `settings` are those of `CoordinationConfig`, by name."""
    dials = [f"{settings['num_agents']} agents"]
    if task == "same-side":
        dials.append(f"sharpness {settings['sharpness']:g}")
    if task == "spread":
        dials.append(f"{settings['num_conventions']} conventions")
    dials.append(f"coverage {settings['coverage']:g}")
    if settings["dataset"] != DEFAULTS[task].dataset:
        dials.append(f"{settings['dataset']} learned teams")
    if settings["reward_inputs"] != DEFAULTS[task].reward_inputs:
        dials.append(f"rewards from {settings['reward_inputs']} inputs")
    return dials
