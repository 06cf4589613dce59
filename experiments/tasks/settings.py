"""The settings of the coordination command, and the methods that it compares."""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

from coda_jax.data.coordination import SameSideData
from coda_jax.diffusion.generator import GeneratorConfig
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.diffusion.unet import UNetConfig
from coda_jax.envs.coordination import EPISODE_LENGTH, SameSide
from coda_jax.schedule import CodaConfig
from experiments.host.errors import UserError
from experiments.pipeline.learners import ALGORITHMS, DEFAULT_ALGORITHM, LearnerSettings, check_learner, is_of_algorithm
from experiments.pipeline.settings import check_choice, check_positive

TASKS = ("same-side",)

_SAMPLER = SamplerConfig(num_steps=16)
_GENERATOR = GeneratorConfig(
    unet=UNetConfig(width=64, channel_multipliers=(1, 1)), num_updates=4_000, batch_size=256, learning_rate=2e-3
)
_LEARNER = LearnerSettings(
    critic_learning_rate=1e-3,
    policy_learning_rate=1e-3,
    target_rate=0.02,
    policy_linear_width=32,
    policy_hidden_width=32,
    critic_widths=(64, 64),
    critic_layer_norm=True,
)
_TRAINING = CodaConfig(
    horizon=EPISODE_LENGTH,
    epochs_per_round=1,
    updates_per_epoch=100,
    num_rounds=12,
    num_trajectories=256,
    static_trajectories=1024,
    chunk_size=512,
    evaluation_episodes=64,
    reference_trajectories=0,
)


@dataclasses.dataclass(frozen=True)
class CoordinationConfig:
    """Compares all methods on a small coordination task over time."""

    task: str = "same-side"
    """Task: `same-side`."""
    num_agents: int = 2
    """Agents."""
    sharpness: float = 1.0
    """Weight and exponent of the penalty for being on different sides; 1 is the smooth product."""
    coverage: float = 0.2
    """Share of recorded episodes with mixed conventions."""
    noise: float = 0.3
    """Standard deviation of the noise on recorded actions."""
    num_episodes: int = 2000
    """Recorded episodes."""
    algorithm: str = DEFAULT_ALGORITHM
    """Learner: `maddpg_bc` (the paper's MADDPG+BC), `iddpg_bc` (independent critics) or `maddpg_cql` (conservative
    Q-learning in place of cloning)."""
    num_seeds: int = 16
    """Policy seeds a method."""
    seed: int = 0
    """First seed."""
    guidance: float = 0.6
    """lambda."""
    run_dir: Path | None = None
    """Run folder; by default named by the settings, below `runs/`."""
    diffusion: SamplerConfig = _SAMPLER
    """Sampling."""
    denoiser: GeneratorConfig = _GENERATOR
    """The diffusion model and its fit."""
    learner: LearnerSettings = _LEARNER
    """The learner; settings that the algorithm does not use are refused."""
    training: CodaConfig = _TRAINING
    """Algorithm 2."""

    @property
    def data(self) -> SameSideData:
        """The distribution of the recorded episodes."""
        task = SameSide(num_agents=self.num_agents, sharpness=self.sharpness)
        return SameSideData(task, num_episodes=self.num_episodes, coverage=self.coverage, noise=self.noise)


class Method(NamedTuple):
    """A method of the comparison.

    augmentation:     the source of synthetic trajectories.
    actor_teammates:  as in `MaddpgBcConfig`.
    is_split:         the actor's Q term on synthetic rows alone, cloning on recorded rows alone.
    through_denoiser: guidance carried back through the denoiser.
    recorded_steps:   tokens held to recorded states.
    """

    augmentation: Literal["none", "unconditional", "proximal", "guided", "oracle"]
    actor_teammates: Literal["data", "current"] = "data"
    is_split: bool = False
    through_denoiser: bool = False
    recorded_steps: int = 0


METHODS = {
    "no augmentation": Method("none"),
    "joint-action actor": Method("none", actor_teammates="current"),
    "unconditional": Method("unconditional"),
    "PJAP": Method("proximal"),
    "CODA (paper)": Method("guided"),
    "CODA, split rows": Method("guided", is_split=True),
    "CODA, split rows, recorded starts": Method("guided", is_split=True, recorded_steps=1),
    "CODA, split rows, through the denoiser": Method("guided", is_split=True, through_denoiser=True),
    "CODA, recorded starts, through the denoiser": Method("guided", through_denoiser=True, recorded_steps=1),
    "CODA+": Method("guided", is_split=True, through_denoiser=True, recorded_steps=1),
    "oracle": Method("oracle"),
    "oracle, split rows": Method("oracle", is_split=True),
}
"""By name. CODA+ has all three changes; the methods between leave one or two of them out."""


def methods_of(config: CoordinationConfig) -> dict[str, Method]:
    """The methods of a comparison: independent critics see no teammates, so IDDPG+BC has no joint-action actor."""
    is_possible = is_of_algorithm(config.algorithm, "learner.actor_teammates")
    return {name: each for name, each in METHODS.items() if is_possible or each.actor_teammates == "data"}


def check(config: CoordinationConfig) -> None:
    """Refuses settings that cannot run.

    Raises:
        UserError: names the first such setting, its value, and what it may be.
    """
    check_choice("--task", config.task, TASKS)
    check_choice("--algorithm", config.algorithm, ALGORITHMS)
    check_learner(config.algorithm, config.learner, _LEARNER)
    if config.learner.actor_teammates != "data":
        raise UserError("--learner.actor-teammates is set by the methods; leave it out")
    check_positive({"--num-seeds": config.num_seeds, "--denoiser.num-updates": config.denoiser.num_updates})
    if config.training.horizon != EPISODE_LENGTH or config.training.evaluation_episodes < 1:
        raise UserError(f"--training.horizon must be {EPISODE_LENGTH} and --training.evaluation-episodes at least 1")
    if config.seed < 0 or not config.guidance >= 0.0:
        raise UserError("--seed and --guidance must be zero or larger")
    if not round(config.training.mix_ratio * config.training.batch_size):
        raise UserError(f"--training.mix-ratio {config.training.mix_ratio} of a mini-batch rounds to no trajectory")
    try:
        _ = config.data
    except ValueError as error:
        raise UserError(str(error)) from error
