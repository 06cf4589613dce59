"""The settings of the coordination command, and the methods that it compares."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from annotated_types import Interval

from coda_jax.data.coordination import SameSideData
from coda_jax.diffusion.generator import GeneratorConfig
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.diffusion.unet import UNetConfig
from coda_jax.envs.coordination import EPISODE_LENGTH, SameSide
from coda_jax.marl.maddpg_bc import MaddpgBcConfig
from coda_jax.ranges import Count, NonNegative, Ranged, Seed, Share, check_seeds
from coda_jax.schedule import CodaConfig
from experiments.host.errors import UserError
from experiments.pipeline.settings import check_choice

TASKS = ("same-side",)

_SAMPLER = SamplerConfig(num_steps=16)
_GENERATOR = GeneratorConfig(
    unet=UNetConfig(width=64, channel_multipliers=(1, 1)), num_updates=4_000, batch_size=256, learning_rate=2e-3
)
_LEARNER = MaddpgBcConfig(
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
class CoordinationConfig(Ranged):
    """Compares all methods on a small coordination task over time."""

    task: str = "same-side"
    """Task: `same-side`."""
    num_agents: Annotated[int, Interval(ge=2, lt=2**31)] = 2
    """Agents."""
    sharpness: Annotated[float, Interval(ge=1.0, lt=math.inf)] = 1.0
    """Weight and exponent of the penalty for being on different sides; 1 is the smooth product."""
    coverage: Share = 0.2
    """Share of recorded episodes with mixed conventions."""
    noise: NonNegative = 0.3
    """Standard deviation of the noise on recorded actions."""
    num_episodes: Count = 2000
    """Recorded episodes."""
    num_seeds: Count = 16
    """Policy seeds a method."""
    seed: Seed = 0
    """First seed."""
    guidance: NonNegative = 0.6
    """lambda."""
    run_dir: Path | None = None
    """Run folder; by default named by the settings, below `runs/`."""
    diffusion: SamplerConfig = _SAMPLER
    """Sampling."""
    denoiser: GeneratorConfig = _GENERATOR
    """The diffusion model and its fit."""
    learner: MaddpgBcConfig = _LEARNER
    """MADDPG+BC."""
    training: CodaConfig = _TRAINING
    """Algorithm 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(self.seed, self.num_seeds)

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

    augmentation: Literal["none", "unconditional", "guided", "oracle"]
    actor_teammates: Literal["data", "current"] = "data"
    is_split: bool = False
    through_denoiser: bool = False
    recorded_steps: int = 0


METHODS = {
    "no augmentation": Method("none"),
    "joint-action actor": Method("none", actor_teammates="current"),
    "unconditional": Method("unconditional"),
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


def check(config: CoordinationConfig) -> None:
    """Refuses settings that cannot run.

    Raises:
        UserError: names the first such setting, its value, and what it may be.
    """
    check_choice("--task", config.task, TASKS)
    if config.training.horizon != EPISODE_LENGTH or config.training.evaluation_episodes < 1:
        raise UserError(f"--training.horizon must be {EPISODE_LENGTH} and --training.evaluation-episodes at least 1")
    if not config.training.synthetic_per_batch:
        raise UserError("--training.mix-ratio is 0; the methods differ in their synthetic trajectories")
