"""The settings of the polynomial games' command, and their validation."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Annotated

from coda_jax.diffusion.generator import GeneratorConfig
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.diffusion.unet import UNetConfig
from coda_jax.envs.polynomial import DATASETS, MULTIPLICATION, Action, DatasetConfig, PolynomialGame, reward, twin_peaks
from coda_jax.marl.stateless_maddpg import CriticConfig, StatelessMaddpgConfig, stateless_maddpg
from coda_jax.ranges import Count, Positive, Ranged, Seed, check_seeds
from experiments.games.methods import GameCodaConfig
from experiments.host.errors import UserError
from experiments.host.help_text import choices
from experiments.pipeline.settings import check_choice

GAMES = {"multiplication": MULTIPLICATION, "twin-peaks": twin_peaks()}
CRITICS = ("known", "learned")
GameName = Annotated[str, choices(GAMES)]
DEFAULT_DATASETS = {"multiplication": "skewed", "twin-peaks": "uniform"}
"""The datasets of Figures 1 and 2: means of opposite sign, and data centred at the origin."""


@dataclasses.dataclass(frozen=True)
class GameSettings(Ranged):
    """A game and the distribution of its offline data."""

    game: GameName = "multiplication"
    """Game: `multiplication` (R = xy) or `twin-peaks` (R = -x^2 - y^2 - 4 x^2 y^2 + 5 x y)."""
    coefficients: str | None = None
    """A game of one's own in place of --game: c_jk of R = sum c_jk x^j y^k, rows j parted by semicolons, such as
    "0 0 -1; 0 5 0; -1 0 -4" for twin-peaks."""
    dataset: str | None = None
    """Offline data: `uniform` over the square, `skewed` (its means are 0.15 and -0.05), `gaussian` or `point`.
    By default `skewed` for multiplication, as in Figure 1, and `uniform` for other games, as in Figure 2."""
    centre: tuple[Action, Action] = (0.0, 0.0)
    """Mean of `gaussian`; the joint action of `point`."""
    spread: Positive = 0.2
    """Standard deviation of `gaussian`."""


@dataclasses.dataclass(frozen=True)
class PolynomialConfig(GameSettings):
    """Trains all methods on a polynomial game, from the paper's start and from a grid of starts."""

    num_transitions: Count = 4000
    """Joint actions in a dataset."""
    num_seeds: Count = 16
    """Policy seeds per method, divided equally among the draws of the dataset."""
    num_draws: Count = 4
    """Independent draws of the dataset; denoisers are fitted to each."""
    seed: Seed = 0
    """First seed."""
    num_updates: Count = 150
    """Updates of a policy, after burn-in."""
    grid_size: Count = 12
    """Starts per side of the grid; the square of this number must be a multiple of --num-draws."""
    grid_updates: Count = 60
    """Updates from each start of the grid."""
    critic: Annotated[str, choices(CRITICS)] = "known"
    """Critic: `known` (the reward function) or `learned` (fitted to the recorded rewards)."""
    run_dir: Path | None = None
    """Run folder; by default named by the settings, below `runs/`."""
    allow_other_devices: bool = False
    """Resume a run folder that was started on another number of devices."""
    coda: GameCodaConfig = dataclasses.field(default_factory=GameCodaConfig)
    """Algorithm 2 and the baselines."""
    learner: StatelessMaddpgConfig = dataclasses.field(default_factory=StatelessMaddpgConfig)
    """Stateless MADDPG."""
    learned_critic: CriticConfig = dataclasses.field(default_factory=CriticConfig)
    """The fit of a learned critic."""
    diffusion: SamplerConfig = dataclasses.field(default_factory=lambda: SamplerConfig(num_steps=24))
    """Sampling, except in the policy-guided route."""
    guided_diffusion: SamplerConfig = dataclasses.field(default_factory=lambda: SamplerConfig(num_steps=64))
    """Sampling in the policy-guided route (Algorithm 1)."""
    denoiser: GeneratorConfig = dataclasses.field(
        default_factory=lambda: GeneratorConfig(
            unet=UNetConfig(width=32, channel_multipliers=(1, 1), kernel_size=1, embedding_dim=32),
            num_updates=8000,
            batch_size=256,
            learning_rate=1e-2,
        )
    )
    """The diffusion models; `condition_dim` is set by the method."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seeds(self.seed, self.num_seeds)


def check(config: PolynomialConfig) -> None:
    """Refuses settings that cannot run.

    Raises:
        UserError: names the first such setting, its value, and the valid values.
    """
    game = game_of(config)
    dataset_of(config)
    check_choice("--critic", config.critic, CRITICS)
    multiples = (
        ("--num-seeds", config.num_seeds, "--num-draws", config.num_draws),
        ("--grid-size, squared,", config.grid_size**2, "--num-draws", config.num_draws),
        ("--num-updates", config.num_updates, "--coda.updates-per-renewal", config.coda.updates_per_renewal),
        ("--grid-updates", config.grid_updates, "--coda.updates-per-renewal", config.coda.updates_per_renewal),
    )
    for flag, value, unit_flag, unit in multiples:
        if value % unit:
            raise UserError(f"{flag} is {value}; it must be a multiple of {unit_flag} {unit}")
    try:
        stateless_maddpg(game.spec, functools.partial(reward, game), config.learner)
    except ValueError as error:
        raise UserError(str(error)) from error


def game_of(settings: GameSettings) -> PolynomialGame:
    """The game by its name, or of one's own coefficients.

    Raises:
        UserError: an unknown name, or coefficients that are no rows of numbers of equal length.
    """
    coefficients = settings.coefficients
    if coefficients is None:
        check_choice("--game", settings.game, tuple(GAMES))
        return GAMES[settings.game]
    problem = f"--coefficients is '{coefficients}'; give rows of finite numbers of equal length, such as '0 0; 0 1'"
    try:
        rows = tuple(tuple(float(c) for c in row.replace(",", " ").split()) for row in coefficients.split(";"))
    except ValueError:
        raise UserError(problem) from None
    if len({len(row) for row in rows}) != 1 or not rows[0] or not all(math.isfinite(c) for row in rows for c in row):
        raise UserError(problem)
    return PolynomialGame("own", rows)


def dataset_of(settings: GameSettings) -> DatasetConfig:
    """The distribution of the offline data; their number is the default.

    Raises:
        UserError: an unknown name.
    """
    usual = "uniform" if settings.coefficients is not None else DEFAULT_DATASETS[settings.game]
    name = settings.dataset or usual
    check_choice("--dataset", name, DATASETS)
    return DatasetConfig(name, settings.centre, settings.spread)
