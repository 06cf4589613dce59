"""Joint trajectories as unconstrained tokens: packing, and the empirical-CDF transform of App. E.2.

Each channel is made uniform by its empirical CDF F and unconstrained by a logit (Eq. 25). Dividing by pi / sqrt(3), the
standard deviation of a logistic variable, gives z unit variance, so that the denoiser's sigma_data is 1:

    forward   x -> u = F(x) -> z = logit(u) / (pi / sqrt(3))
    inverse   z -> u = sigmoid(z pi / sqrt(3)) -> x = Q(u), Q the quantile function

The paper leaves unbounded features at u; here they take the logit like all others unless `fit` is told otherwise.

Ranks are midpoints, (rank - 1/2) / n, so that the extremes stay finite. An *atom* (a value that fills an interval of u,
such as a saturated action) is spread uniformly over the ranks of its samples on the way in (the distributional
transform) and comes back exactly from anywhere in its interval.

Q is a table over K + 1 cells whose borders are the midpoints (k + 1/2) / K, so that u finds its cell without a search.
An atom of probability 1 / K or more cannot hide inside a cell: there Q is at most flat, rising, flat, with a jump at
each atom's edge. Four knots say so; the first two, or the last two, coincide where there is no atom.

    value  x_3 |                 o---   atom           u_0, u_3   last, first rank of the atom at the cell's start, end
           x_2 |             o                         u_1, u_2   first, last rank of what lies between
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
"""Eq. 25's epsilon: u is kept this far from 0 and 1."""

LOGISTIC_STD = math.pi / math.sqrt(3.0)
"""Standard deviation of the logit of a uniform variable."""

UNIFORM_STD = 1.0 / math.sqrt(12.0)
"""Standard deviation of a uniform variable."""


@chex.dataclass(frozen=True)
class CdfTransform:
    """A fitted transform; every leaf leads with the C channels.

    ranks:     `[C, K + 1, 4]` the knots' probabilities u, four a cell, nowhere decreasing.
    values:    `[C, K + 1, 4]` the knots' values Q(u), in the channel's units, nowhere decreasing.
    half_rank: `[C]` 1 / (2 n), half the probability of one of the n fitted samples.
    unbounded: `[C]` whether the channel stays uniform (standardised), without the logit.
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

    With no more samples than knots every sample is a knot of its own. Otherwise repeated values rarer than
    1 / num_knots are interpolated like continuous ones, but a repeated minimum or maximum is an atom however rare.
    float32 tells neighbouring ranks apart up to about two million samples.

    Args:
      data: `[N, C]` samples, taken as float32.
      num_knots: K, the resolution of the table; min(K, N) is used.
      unbounded: `[C]` channels to leave uniform, without the logit (App. E.2); by default none.

    Raises:
      ValueError: where `data` is not `[N, C]` with N > 0, or a channel is not finite, or num_knots < 1.
    """
    samples = np.asarray(data, np.float32)
    if samples.ndim != 2 or samples.shape[0] == 0:
        raise ValueError(f"data to fit must be [N, C] with N > 0, not {list(samples.shape)}")
    if num_knots < 1:
        raise ValueError(f"num_knots must be at least 1, not {num_knots}")
    num_samples, channels = samples.shape
    broken = np.flatnonzero(~np.isfinite(samples).all(axis=0))
    if broken.size:
        rows = np.count_nonzero(~np.isfinite(samples[:, broken[0]]))
        raise ValueError(f"data to fit: channel {broken[0]} is not finite in {rows} of {num_samples} samples")
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

    # An atom and the value beside it keep half a rank away from their common edge, which is where Q jumps; so do the
    # extremes from the ends.
    beside_left = atom | np.append(True, atom[:-1])
    beside_right = atom | np.append(atom[1:], True)
    lower = np.where(beside_left, left + 0.5, -np.inf)
    upper = np.where(beside_right, right - 0.5, np.inf)
    middle = (left + right) / 2
    run_ranks = np.stack([np.where(beside_left, lower, middle), np.where(beside_right, upper, middle)], -1).ravel()
    run_values = np.repeat(values.astype(np.float64), 2)

    borders = np.clip((np.arange(num_knots + 2) - 0.5) * n / num_knots, 0, n)
    first = np.searchsorted(right, borders[:-1], side="right")  # the value whose ranks the cell starts in
    last = np.searchsorted(right, borders[1:], side="left")  # and ends in
    start = np.clip(borders[:-1], lower[first], upper[first])
    end = np.clip(borders[1:], lower[last], upper[last])
    start_value = np.interp(start, run_ranks, run_values)
    end_value = np.interp(end, run_ranks, run_values)

    jump_up = atom[first] & (first < last)  # the atom at the cell's start ends within the cell
    jump_down = atom[last] & (first < last)  # the atom at the cell's end starts within the cell
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
    # Two atoms that meet within a cell leave no line between knots 1 and 2.
    return np.maximum.accumulate(np.stack(ranks, -1), -1), np.maximum.accumulate(np.stack(knot_values, -1), -1)


def select(transform: CdfTransform, channels: slice) -> CdfTransform:
    """The transform of some channels only, in the same order."""
    return jax.tree.map(lambda leaf: leaf[channels], transform)


def forward(transform: CdfTransform, x: Float[Array, "*batch C"], key: PRNGKey) -> Float[Array, "*batch C"]:
    """Data to unconstrained space: z = logit(F(x)) / (pi / sqrt(3)), Eq. 25 after uniformisation.

    Constant channels give 0; values outside the fitted range count as the nearest fitted one; NaN stays NaN.
    The key is consumed by the jitter within atoms.
    """
    jitter = jax.random.uniform(key, x.shape, x.dtype)
    return jax.vmap(_forward_channel, in_axes=(0, -1, -1), out_axes=-1)(transform, x, jitter)


def inverse(transform: CdfTransform, z: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
    """Unconstrained space to data: x = Q(sigmoid(z pi / sqrt(3))), Eq. 28 with the quantile function Q.

    Takes any z, +-inf included, to within the fitted range; NaN stays NaN. Differentiable: dx/dz is zero inside atoms
    and beyond the extreme ranks.
    """
    channels, num_cells, knots_per_cell = transform.values.shape
    chex.assert_axis_dimension(z, -1, channels)

    def across(field: Array) -> Array:
        return jnp.broadcast_to(field, z.shape)

    uniform = jnp.clip(z * UNIFORM_STD + 0.5, 0.0, 1.0)
    u = jnp.where(across(transform.unbounded), uniform, jax.nn.sigmoid(z * LOGISTIC_STD))
    cell = jnp.clip(jnp.floor(u * (num_cells - 1) + 0.5).astype(jnp.int32), 0, num_cells - 1)
    # One flat index for all channels: on a CPU twice as fast as a lookup vmapped over channels, and some ten times as
    # fast as a binary search.
    knot = knots_per_cell * (cell + across(num_cells * jnp.arange(channels, dtype=jnp.int32)))

    def take(table: Float[Array, "C cells 4"], offset: int) -> Float[Array, "*batch C"]:
        return table.reshape(-1).at[knot + offset].get(mode="promise_in_bounds")

    u_1, u_2 = take(transform.ranks, 1), take(transform.ranks, 2)
    x_0, x_1, x_2, x_3 = (take(transform.values, offset) for offset in range(4))
    weight = (jnp.clip(u, u_1, u_2) - u_1) / jnp.maximum(u_2 - u_1, jnp.finfo(u.dtype).tiny)
    line = jnp.minimum(x_1 + weight * (x_2 - x_1), x_2)  # rounding must not step over the knot
    half_rank = across(transform.half_rank)
    return jnp.where(u < u_1 - half_rank, x_0, jnp.where(u >= u_2 + half_rank, x_3, line))


def _forward_channel(transform: CdfTransform, x: Float[Array, "*batch"], jitter: Float[Array, "*batch"]) -> Array:
    """`forward` of one channel, whose leaves have lost their leading axis."""
    minimum, maximum = transform.values[0, 0], transform.values[-1, -1]
    x = jnp.clip(x, minimum, maximum)
    u_low = _rank(transform, x, "left")
    u_high = _rank(transform, x, "right")
    u = u_low + jitter * (u_high - u_low)  # low and high differ inside atoms only
    clipped = jnp.clip(u, CLIP, 1.0 - CLIP)
    z = jnp.where(transform.unbounded, (u - 0.5) / UNIFORM_STD, (jnp.log(clipped) - jnp.log1p(-clipped)) / LOGISTIC_STD)
    return jnp.where(minimum < maximum, z, 0.0)


def _rank(transform: CdfTransform, x: Float[Array, "*batch"], side: Literal["left", "right"]) -> Array:
    """The lowest ("left") or highest ("right") u whose quantile is x, for x within the range of one channel."""
    ranks, values = transform.ranks.reshape(-1), transform.values.reshape(-1)
    index = jnp.searchsorted(values, x, side=side)
    # Interpolate from the knot that x may be equal to, `here`, so that equality is exact.
    here, there = (index, index - 1) if side == "left" else (index - 1, index)
    here, there = (jnp.clip(i, 0, values.size - 1) for i in (here, there))
    gap = values[there] - values[here]
    return ranks[here] + (x - values[here]) / jnp.where(gap == 0.0, 1.0, gap) * (ranks[there] - ranks[here])


def num_channels(spec: TaskSpec) -> int:
    """C = S + A O + A U + 2, the channels of a packed token."""
    return action_channels(spec).stop + 2


def obs_channels(spec: TaskSpec) -> slice:
    """Where the A O observation channels of a packed token lie, agent by agent."""
    return slice(spec.state_dim, spec.state_dim + spec.num_agents * spec.obs_dim)


def action_channels(spec: TaskSpec) -> slice:
    """Where the A U action channels of a packed token lie, agent by agent."""
    start = obs_channels(spec).stop
    return slice(start, start + spec.num_agents * spec.action_dim)


def pack(trajectory: Trajectory) -> Float[Array, "*batch H C"]:
    """Tokens of a joint trajectory: state, observations, actions, reward and terminal side by side."""

    def flat(per_agent: Float[Array, "*batch H A F"]) -> Float[Array, "*batch H AF"]:
        return per_agent.reshape(*per_agent.shape[:-2], -1)

    scalars = jnp.stack([trajectory.reward, trajectory.terminal], -1)
    return jnp.concatenate([trajectory.state, flat(trajectory.obs), flat(trajectory.action), scalars], -1)


def unpack(tokens: Float[Array, "*batch H C"], spec: TaskSpec) -> Trajectory:
    """The trajectory packed in `tokens`.

    The terminal needs no threshold (App. E.2): its 0 and 1 are atoms of the transform, so a generated one is binary.
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
