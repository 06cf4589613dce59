"""Packing of joint trajectories into tokens, and the empirical-CDF transform to unconstrained space (App. E.2).

The empirical CDF F maps each channel to a uniform variable, and a logit maps it to the real line (Eq. 25). Division
by pi / sqrt(3), the standard deviation of a logistic variable, gives z unit variance, so sigma_data is 1:

    forward   x -> u = F(x) -> z = logit(u) / (pi / sqrt(3))
    inverse   z -> u = sigmoid(z pi / sqrt(3)) -> x = Q(u), Q the quantile function

The paper leaves unbounded features at u; here they have a logit too, except for the channels `unbounded` of `fit`.

Ranks are midpoints, (rank - 1/2) / n, so the extremes stay finite. An *atom* (a value with positive probability, such
as a saturated action) is mapped to a uniform random rank among those of its samples (the distributional transform); the
inverse maps the whole interval of its ranks to the exact value.

Q is a table over K + 1 cells with borders at the midpoints (k + 1/2) / K, so finding the cell of u needs no search. An
atom of probability 1 / K or more always reaches a border of a cell. Within a cell, Q therefore consists of at most an
atom, an increasing line and another atom, with jumps between them. Four knots represent this; the first two, or the
last two, coincide if there is no atom.

    value  x_3 |                 o---   atom           u_0, u_3   last, first rank of the atom at the cell's start, end
           x_2 |             o                         u_1, u_2   first, last rank between the atoms
           x_1 |      o   /                            jumps      half a rank before u_1 and half a rank after u_2
           x_0 |---o                    atom
"""

import math
from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from coda_jax.types import PRNGKey, TaskSpec, Trajectory

CLIP = 1e-6
"""Epsilon of Eq. 25: u is clipped to [epsilon, 1 - epsilon]."""

LOGISTIC_STD = math.pi / math.sqrt(3.0)
"""Standard deviation of the logit of a uniform variable."""

UNIFORM_STD = 1.0 / math.sqrt(12.0)
"""Standard deviation of a uniform variable."""


@chex.dataclass(frozen=True)
class CdfTransform:
    """A fitted transform; every leaf has a leading axis of C channels.

    ranks:     `[C, K + 1, 4]` probabilities u of the knots, four per cell, non-decreasing.
    values:    `[C, K + 1, 4]` values Q(u) of the knots, in the channel's units, non-decreasing.
    half_rank: `[C]` 1 / (2 n), half the probability of one of the n samples of the fit.
    unbounded: `[C]` whether the channel stays uniform (standardised, without the logit).
    """

    ranks: Float[Array, "*C cells 4"]
    values: Float[Array, "*C cells 4"]
    half_rank: Float[Array, "*C"]
    unbounded: Bool[Array, "*C"]


def fit(
    data: Float[Array, "N C"] | Float[np.ndarray, "N C"],
    num_knots: int = 1024,
    unbounded: Bool[np.ndarray, " C"] | None = None,
) -> CdfTransform:
    """Fits the empirical CDF of every channel, on the host.

    With at most as many samples as knots, every sample is a knot. Otherwise, repeated values with a probability below
    1 / num_knots are interpolated like continuous values, except that a repeated minimum or maximum is always an atom.
    float32 distinguishes neighbouring ranks up to about two million samples.

    Args:
      data: `[N, C]` samples, converted to float32.
      num_knots: K, the resolution of the table; min(K, N) is used.
      unbounded: `[C]` channels that stay uniform, without the logit (App. E.2); none by default.

    Raises:
      ValueError: `data` is not `[N, C]` with N > 0, a channel is not finite, or num_knots < 1.
    """
    samples = np.asarray(data, np.float32)
    if samples.ndim != 2 or samples.shape[0] == 0:
        raise ValueError(f"data to fit must be [N, C] with N > 0, not {list(samples.shape)}")
    if num_knots < 1:
        raise ValueError(f"num_knots must be at least 1, not {num_knots}")
    num_samples, channels = samples.shape
    invalid = np.flatnonzero(~np.isfinite(samples).all(axis=0))
    if invalid.size:
        rows = np.count_nonzero(~np.isfinite(samples[:, invalid[0]]))
        raise ValueError(f"data to fit: channel {invalid[0]} is not finite in {rows} of {num_samples} samples")
    num_cells = min(num_knots, num_samples) + 1
    knots = np.empty((2, channels, num_cells, 4))
    for c in range(channels):
        knots[:, c] = _knots(samples[:, c], num_cells - 1)
    return CdfTransform(
        ranks=jnp.asarray(knots[0] / num_samples, jnp.float32),
        values=jnp.asarray(knots[1], jnp.float32),
        half_rank=jnp.full(channels, 0.5 / num_samples, jnp.float32),
        unbounded=jnp.zeros(channels, bool) if unbounded is None else jnp.asarray(unbounded, bool).reshape(channels),
    )


def _knots(samples: np.ndarray, num_knots: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (from 0 to n) and values, each `[num_knots + 1, 4]`, of one channel's quantile function."""
    n = samples.size
    values, counts = np.unique(samples, return_counts=True)
    right = np.cumsum(counts)
    left = right - counts
    extreme = (left == 0) | (right == n)
    atom = (counts > 1) & ((counts * num_knots >= n) | extreme)

    # An atom and the neighbouring value stay half a rank away from their common edge, where Q jumps; the extremes stay
    # half a rank away from the ends.
    beside_left = atom | np.append(True, atom[:-1])
    beside_right = atom | np.append(atom[1:], True)
    lower = np.where(beside_left, left + 0.5, -np.inf)
    upper = np.where(beside_right, right - 0.5, np.inf)
    middle = (left + right) / 2
    run_ranks = np.stack([np.where(beside_left, lower, middle), np.where(beside_right, upper, middle)], -1).ravel()
    run_values = np.repeat(values.astype(np.float64), 2)

    borders = np.clip((np.arange(num_knots + 2) - 0.5) * n / num_knots, 0, n)
    first = np.searchsorted(right, borders[:-1], side="right")  # the value at the start of the cell
    last = np.searchsorted(right, borders[1:], side="left")  # the value at the end of the cell
    start = np.clip(borders[:-1], lower[first], upper[first])
    end = np.clip(borders[1:], lower[last], upper[last])
    start_value = np.interp(start, run_ranks, run_values)
    end_value = np.interp(end, run_ranks, run_values)

    jump_up = atom[first] & (first < last)  # the atom at the start of the cell ends inside it
    jump_down = atom[last] & (first < last)  # the atom at the end of the cell starts inside it
    after = np.minimum(first + 1, last)
    before = np.maximum(last - 1, first)
    ranks = [
        np.where(jump_up, right[first] - 0.5, start),
        np.where(jump_up, right[first] + 0.5, start),
        np.where(jump_down, left[last] - 0.5, end),
        np.where(jump_down, left[last] + 0.5, end),
    ]
    knot_values = [
        start_value,
        np.where(jump_up, values[after], start_value),
        np.where(jump_down, values[before], end_value),
        end_value,
    ]
    # If two atoms meet inside a cell, there is no line between knots 1 and 2.
    return np.maximum.accumulate(np.stack(ranks, -1), -1), np.maximum.accumulate(np.stack(knot_values, -1), -1)


def select(transform: CdfTransform, channels: slice) -> CdfTransform:
    """The transform of a subset of the channels, in the same order."""
    return jax.tree.map(lambda leaf: leaf[channels], transform)


def forward(transform: CdfTransform, x: Float[Array, "*batch C"], key: PRNGKey) -> Float[Array, "*batch C"]:
    """Data to unconstrained space: z = logit(F(x)) / (pi / sqrt(3)), Eq. 25 after uniformisation.

    Constant channels give 0; values outside the fitted range are clipped to it; NaN stays NaN.
    The key is consumed; it draws the ranks of atoms.
    """
    jitter = jax.random.uniform(key, x.shape, x.dtype)
    # One channel after the other: together, their searches would take many times the memory of a whole dataset.
    channels = transform, jnp.moveaxis(x, -1, 0), jnp.moveaxis(jitter, -1, 0)
    return jnp.moveaxis(jax.lax.map(lambda channel: _forward_channel(*channel), channels), 0, -1)


def inverse(transform: CdfTransform, z: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
    """Unconstrained space to data: x = Q(sigmoid(z pi / sqrt(3))), Eq. 28 with the quantile function Q.

    Maps any z, also +-inf, into the fitted range; NaN stays NaN. Differentiable: dx/dz is zero inside atoms and beyond
    the extreme ranks.
    """
    channels, num_cells, knots_per_cell = transform.values.shape
    chex.assert_axis_dimension(z, -1, channels)

    def per_channel(field: Array) -> Array:
        return jnp.broadcast_to(field, z.shape)

    uniform = jnp.clip(z * UNIFORM_STD + 0.5, 0.0, 1.0)
    u = jnp.where(per_channel(transform.unbounded), uniform, jax.nn.sigmoid(z * LOGISTIC_STD))
    cell = jnp.clip(jnp.floor(u * (num_cells - 1) + 0.5).astype(jnp.int32), 0, num_cells - 1)
    # One flat index for all channels: on a CPU twice as fast as a lookup vmapped over channels, and about ten times as
    # fast as a binary search.
    knot = knots_per_cell * (cell + per_channel(num_cells * jnp.arange(channels, dtype=jnp.int32)))

    def take(table: Float[Array, "C cells 4"], offset: int) -> Float[Array, "*batch C"]:
        return table.reshape(-1).at[knot + offset].get(mode="promise_in_bounds")

    u_1, u_2 = take(transform.ranks, 1), take(transform.ranks, 2)
    x_0, x_1, x_2, x_3 = (take(transform.values, offset) for offset in range(4))
    weight = (jnp.clip(u, u_1, u_2) - u_1) / jnp.maximum(u_2 - u_1, jnp.finfo(u.dtype).tiny)
    line = jnp.minimum(x_1 + weight * (x_2 - x_1), x_2)  # rounding must not exceed the knot
    half_rank = per_channel(transform.half_rank)
    return jnp.where(u < u_1 - half_rank, x_0, jnp.where(u >= u_2 + half_rank, x_3, line))


def _forward_channel(transform: CdfTransform, x: Float[Array, "*batch"], jitter: Float[Array, "*batch"]) -> Array:
    """`forward` of one channel, with leaves without their leading axis."""
    minimum, maximum = transform.values[0, 0], transform.values[-1, -1]
    x = jnp.clip(x, minimum, maximum)
    u_low = _rank(transform, x, "left")
    u_high = _rank(transform, x, "right")
    u = u_low + jitter * (u_high - u_low)  # u_low and u_high differ for atoms only
    clipped = jnp.clip(u, CLIP, 1.0 - CLIP)
    z = jnp.where(transform.unbounded, (u - 0.5) / UNIFORM_STD, (jnp.log(clipped) - jnp.log1p(-clipped)) / LOGISTIC_STD)
    return jnp.where(minimum < maximum, z, 0.0)


def _rank(transform: CdfTransform, x: Float[Array, "*batch"], side: Literal["left", "right"]) -> Array:
    """The lowest ("left") or highest ("right") u with quantile x, for x within the range of one channel."""
    ranks, values = transform.ranks.reshape(-1), transform.values.reshape(-1)
    index = jnp.searchsorted(values, x, side=side)
    # Interpolate from `nearest`, the knot that may be equal to x, so that the result is exact in case of equality.
    nearest, other = (index, index - 1) if side == "left" else (index - 1, index)
    nearest, other = (jnp.clip(i, 0, values.size - 1) for i in (nearest, other))
    gap = values[other] - values[nearest]
    return ranks[nearest] + (x - values[nearest]) / jnp.where(gap == 0.0, 1.0, gap) * (ranks[other] - ranks[nearest])


def num_channels(spec: TaskSpec) -> int:
    """C = S + A O + A U + 2, the number of channels of a packed token."""
    return action_channels(spec).stop + 2


def obs_channels(spec: TaskSpec) -> slice:
    """The A O observation channels of a packed token, ordered by agent."""
    return slice(spec.state_dim, spec.state_dim + spec.num_agents * spec.obs_dim)


def action_channels(spec: TaskSpec) -> slice:
    """The A U action channels of a packed token, ordered by agent."""
    start = obs_channels(spec).stop
    return slice(start, start + spec.num_agents * spec.action_dim)


def pack(trajectory: Trajectory) -> Float[Array, "*batch H C"]:
    """Concatenates state, observations, actions, reward and terminal of a joint trajectory into tokens."""

    def flat(per_agent: Float[Array, "*batch H A F"]) -> Float[Array, "*batch H AF"]:
        return per_agent.reshape(*per_agent.shape[:-2], -1)

    scalars = jnp.stack([trajectory.reward, trajectory.terminal], -1)
    return jnp.concatenate([trajectory.state, flat(trajectory.obs), flat(trajectory.action), scalars], -1)


def unpack(tokens: Float[Array, "*batch H C"], spec: TaskSpec) -> Trajectory:
    """Inverse of `pack`.

    The terminal needs no threshold (App. E.2): 0 and 1 are atoms of the transform, so generated terminals are binary.
    """

    def split(channels: slice, size: int) -> Float[Array, "*batch H A F"]:
        return tokens[..., channels].reshape(*tokens.shape[:-1], spec.num_agents, size)

    return Trajectory(
        state=tokens[..., : spec.state_dim],
        obs=split(obs_channels(spec), spec.obs_dim),
        action=split(action_channels(spec), spec.action_dim),
        reward=tokens[..., -2],
        terminal=tokens[..., -1],
    )
