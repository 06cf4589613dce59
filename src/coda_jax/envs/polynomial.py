"""Two-player polynomial games: one step, no state, a shared reward R(a^x, a^y) on [-1, 1]^2 (Sec. 6.1, App. C).

A game is given by the coefficients c_jk of R = sum_jk c_jk (a^x)^j (a^y)^k. Its offline datasets are joint actions
drawn from a named distribution; each is a trajectory of one token without state or observations.
"""

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval
from jaxtyping import Array, Float

from coda_jax.envs.base import Environment, EnvState
from coda_jax.ranges import Count, Positive, Ranged
from coda_jax.types import PRNGKey, TaskSpec, Trajectory

Action = Annotated[float, Interval(ge=-1.0, le=1.0)]
"""An agent's action."""

Box = tuple[float, tuple[float, float], float]
"""A uniform distribution on a square: its probability, its lower left corner, its side."""

_SQUARES: dict[str, tuple[Box, ...]] = {
    "uniform": ((1.0, (-1.0, -1.0), 2.0),),
    "skewed": ((11 / 15, (-1.0, -1.0), 2.0), (3 / 15, (0.0, -1.0), 1.0), (1 / 15, (0.5, 0.5), 0.5)),
}
"""Mixtures of uniform distributions that cover [-1, 1]^2; `skewed` has the means 0.15 and -0.05."""

DATASETS = (*_SQUARES, "gaussian", "point")
"""Names of the dataset distributions; see `DatasetConfig`."""


@dataclasses.dataclass(frozen=True)
class DatasetConfig(Ranged):
    """The distribution of recorded joint actions."""

    name: str = "uniform"
    """`uniform` on [-1, 1]^2; `skewed`, which covers the square with extra density in the lower right quadrant and in
    [0.5, 1]^2 (its means are (0.15, -0.05), but both means are positive among high returns); `gaussian`, clipped to the
    square; `point`, a single joint action."""
    centre: tuple[Action, Action] = (0.0, 0.0)
    """Mean of `gaussian` before clipping; the joint action of `point`."""
    spread: Positive = 0.2
    """Standard deviation of `gaussian` before clipping."""
    num_transitions: Count = 4000
    """Joint actions in a dataset (Table 4)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in DATASETS:
            raise ValueError(f"dataset is '{self.name}'; choose one of: {', '.join(DATASETS)}")


@dataclasses.dataclass(frozen=True)
class PolynomialGame:
    """A game; static, hashable."""

    name: str
    """Name of the game."""
    coefficients: tuple[tuple[float, ...], ...]
    """c_jk, the weight of (a^x)^j (a^y)^k; rows of equal length."""

    @property
    def spec(self) -> TaskSpec:
        """Two agents with one action each, no observations."""
        return TaskSpec(name=self.name, num_agents=2, state_dim=0, obs_dim=0, action_dim=1, episode_length=1)


MULTIPLICATION = PolynomialGame("multiplication", ((0.0, 0.0), (0.0, 1.0)))
"""R = a^x a^y."""


def twin_peaks(A: float = 1.0, B: float = 4.0, C: float = 5.0) -> PolynomialGame:
    """R = -A ((a^x)^2 + (a^y)^2) - B (a^x a^y)^2 + C a^x a^y (Eq. 21)."""
    return PolynomialGame("twin-peaks", ((0.0, 0.0, -A), (0.0, C, 0.0), (-A, 0.0, -B)))


def reward(game: PolynomialGame, joint_action: Float[Array, "*batch A U"]) -> Float[Array, "*batch"]:
    """R(a^x, a^y), by Horner's rule in both variables."""
    x, y = joint_action[..., 0, 0], joint_action[..., 1, 0]
    value = jnp.zeros_like(x)
    for row in reversed(game.coefficients):
        inner = jnp.zeros_like(y)
        for coefficient in reversed(row):
            inner = inner * y + coefficient
        value = value * x + inner
    return value


def environment(game: PolynomialGame) -> Environment:
    """The game behind the protocol of environments: a task of one step, without state and observations."""
    spec = game.spec

    def show(value: Array, time: Array) -> EnvState:
        ended = time > 0
        obs = jnp.zeros((spec.num_agents, 0))
        return EnvState(state=jnp.zeros(0), obs=obs, reward=value, terminal=ended, truncated=ended, time=time)

    def start() -> EnvState:
        return show(jnp.zeros(()), jnp.zeros((), jnp.int32))

    def step(current: EnvState, action: Float[Array, "A U"]) -> EnvState:
        return show(reward(game, action), current.time + 1)

    return Environment(reset=lambda key: start(), step=step, set_state=lambda state: start(), spec=spec)


def as_trajectory(game: PolynomialGame, joint_action: Float[Array, "*batch A U"]) -> Trajectory:
    """The joint actions as trajectories `[*batch, 1, ...]` of one step, with their rewards."""
    action = joint_action[..., None, :, :]
    value = reward(game, action)
    empty = jnp.zeros((*value.shape, 0))
    obs = jnp.zeros((*action.shape[:-1], 0))
    return Trajectory(state=empty, obs=obs, action=action, reward=value, terminal=jnp.ones_like(value))


def sample_actions(config: DatasetConfig, key: PRNGKey) -> Float[Array, "num_transitions 2 1"]:
    """Draws the joint actions of an offline dataset. The key is consumed."""
    num = config.num_transitions
    centre = jnp.asarray([config.centre], jnp.float32)
    if config.name == "point":
        actions = jnp.broadcast_to(centre, (num, 2))
    elif config.name == "gaussian":
        actions = jnp.clip(centre + config.spread * jax.random.normal(key, (num, 2)), -1.0, 1.0)
    else:
        key_position, key_square = jax.random.split(key)
        shares, corners, sides = (jnp.asarray(column) for column in zip(*_SQUARES[config.name], strict=True))
        square = jax.random.choice(key_square, len(shares), (num,), p=shares)
        actions = corners[square] + sides[square][:, None] * jax.random.uniform(key_position, (num, 2))
    return actions[..., None]


def sample_dataset(game: PolynomialGame, config: DatasetConfig, key: PRNGKey) -> Trajectory:
    """Draws an offline dataset of a game, as trajectories `[num_transitions, 1, ...]`. The key is consumed."""
    return as_trajectory(game, sample_actions(config, key))


def cell_masses(config: DatasetConfig, edges: Float[np.ndarray, " edges"]) -> Float[np.ndarray, "cells cells"]:
    """The exact probability of each cell (j, k): `edges[j] <= a^x < edges[j+1]` and `edges[k] <= a^y < edges[k+1]`.

    The edges run from -1 to 1; the boundary of the square belongs to the outermost cells.
    """
    inner = edges[1:-1]

    def masses(below: Float[np.ndarray, " borders"]) -> Float[np.ndarray, " cells"]:
        return np.diff(np.concatenate([[0.0], below, [1.0]]))

    if config.name == "point":
        x, y = (masses((c < inner).astype(float)) for c in config.centre)
        return np.outer(x, y)
    if config.name == "gaussian":
        x, y = (masses(np.array([_normal_cdf((edge - c) / config.spread) for edge in inner])) for c in config.centre)
        return np.outer(x, y)
    total = np.zeros((len(edges) - 1, len(edges) - 1))
    for share, corner, side in _SQUARES[config.name]:
        x, y = (masses(np.clip((inner - low) / side, 0.0, 1.0)) for low in corner)
        total += share * np.outer(x, y)
    return total


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))


def optima(game: PolynomialGame, tolerance: float = 1e-9) -> tuple[Float[np.ndarray, "K 2"], float]:
    """The joint actions of the highest reward on [-1, 1]^2, and that reward; on the host, in double precision.

    Repeated grid search around every local maximum of a grid, without derivatives, so corners and edges need no special
    case. Finds isolated maxima that are wider than the grid spacing of 0.01.
    """
    coefficients = np.asarray(game.coefficients)
    axis = np.linspace(-1.0, 1.0, 201)
    value = np.polynomial.polynomial.polygrid2d(axis, axis, coefficients)
    padded = np.pad(value, 1, constant_values=-np.inf)
    shifts = [(j, k) for j in range(3) for k in range(3)]
    highest = np.max([padded[j : j + len(axis), k : k + len(axis)] for j, k in shifts], axis=0)
    points = axis[np.argwhere(value == highest)]
    spacing = axis[1] - axis[0]
    while spacing > tolerance:
        zoom = np.linspace(-spacing, spacing, 21)
        window = np.stack(np.meshgrid(zoom, zoom, indexing="ij"), -1).reshape(-1, 2)
        around = np.clip(points[:, None] + window, -1.0, 1.0)
        best = np.argmax(np.polynomial.polynomial.polyval2d(around[..., 0], around[..., 1], coefficients), axis=1)
        points = around[np.arange(len(points)), best]
        spacing = zoom[1] - zoom[0]
    rewards = np.polynomial.polynomial.polyval2d(points[:, 0], points[:, 1], coefficients)
    points = points[rewards > rewards.max() - 1e-9]
    _, first = np.unique(np.round(points, 4), axis=0, return_index=True)
    return points[first], float(rewards.max())
