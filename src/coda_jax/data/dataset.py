"""Offline data: whole episodes on the host, windows of H steps sampled on the device.

A dataset stores every step once, in one flat array; a window is a gather.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from coda_jax.types import PRNGKey, Trajectory

RETURN_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles of the episode returns in `statistics`."""


@chex.dataclass(frozen=True)
class Episodes:
    """Concatenated whole episodes, as numpy arrays on the host; built by `episodes_from_arrays`.

    state:      `[T, S]` global state s_t, in the environment's units.
    obs:        `[T, A, O]` local observations o_t^i.
    action:     `[T, A, U]` actions a_t^i in [-1, 1].
    reward:     `[T]` team reward r_t received after acting at t.
    terminal:   `[T]` 1.0 where the episode truly ended after t.
    truncation: `[T]` 1.0 where the episode was truncated after t, by a time limit or by the end of the recording.
    """

    state: Float[np.ndarray, "T S"]
    obs: Float[np.ndarray, "T A O"]
    action: Float[np.ndarray, "T A U"]
    reward: Float[np.ndarray, "T"]
    terminal: Float[np.ndarray, "T"]
    truncation: Float[np.ndarray, "T"]

    @property
    def bounds(self) -> Int[np.ndarray, "_"]:
        """`[N + 1]` boundaries of the N episodes: episode k has the steps `bounds[k]` to `bounds[k + 1] - 1`."""
        ends = np.flatnonzero((self.terminal != 0) | (self.truncation != 0)) + 1
        return np.concatenate([np.zeros(1, ends.dtype), ends])


@chex.dataclass(frozen=True)
class Dataset:
    """Steps on the device and the valid starts of windows of H steps; built by `make_dataset`.

    steps:   all T steps, with one leading axis.
    starts:  `[W]` all steps t for which the window t + `offsets` lies inside one episode.
    offsets: `[H]` 0, 1, ..., H - 1, for the largest H for which the starts are valid.
    """

    steps: Trajectory
    starts: Int[Array, "*batch W"]
    offsets: Int[Array, "*batch H"]


def episodes_from_arrays(
    state: np.ndarray,
    obs: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    terminal: np.ndarray,
    truncation: np.ndarray,
) -> Episodes:
    """Converts a recorded stream of steps into episodes, in float32.

    The arguments are the fields of `Episodes`, of any numeric or boolean type; float32 arrays are not copied,
    apart from `truncation`. A last episode that neither ended nor was cut off is kept, as one that was cut off by the
    end of the stream.

    Raises:
        ValueError: the arrays are empty, of different lengths, or of the wrong rank.

    Examples:
        >>> from numpy import array, zeros
        >>> episodes = cj.episodes_from_arrays(
        ...     state=zeros((8, 3)), obs=zeros((8, 2, 4)), action=zeros((8, 2, 1)), reward=zeros(8),
        ...     terminal=zeros(8), truncation=array([0, 0, 0, 1, 0, 0, 0, 1]),
        ... )
        >>> episodes.bounds.tolist()
        [0, 4, 8]
    """
    fields = {
        "state": state,
        "obs": obs,
        "action": action,
        "reward": reward,
        "terminal": terminal,
        "truncation": truncation,
    }
    ranks = {"state": 2, "obs": 3, "action": 3, "reward": 1, "terminal": 1, "truncation": 1}
    fields = {name: np.asarray(value, np.float32) for name, value in fields.items()}
    fields["truncation"] = np.array(fields["truncation"])
    shapes = {name: value.shape for name, value in fields.items()}
    if any(len(shapes[name]) != rank for name, rank in ranks.items()):
        raise ValueError(f"episodes need state [T, S], obs [T, A, O], action [T, A, U] and the rest [T]; got {shapes}")
    if len({shape[0] for shape in shapes.values()}) != 1 or shapes["state"][0] == 0:
        raise ValueError(f"episodes need arrays of one length T > 0 on their first axis; got {shapes}")
    if fields["terminal"][-1] == 0:
        fields["truncation"][-1] = 1.0
    return Episodes(**fields)


def concatenate(parts: Sequence[Episodes]) -> Episodes:
    """Concatenates the episodes of several recordings of one task (for example, of several behaviour teams).

    Raises:
        ValueError: there are no parts, or their state, observation or action sizes differ.
    """
    if not parts:
        raise ValueError("concatenate needs at least one set of episodes")
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def split_episodes(episodes: Episodes, held_out_fraction: float = 0.1, seed: int = 0) -> tuple[Episodes, Episodes]:
    """Splits whole episodes at random into training and held-out episodes; both keep their order.

    Args:
        episodes: at least two episodes.
        held_out_fraction: fraction of the *episodes* to hold out, rounded; at least one episode and not all.
        seed: the same seed gives the same split.

    Returns:
        (training episodes, held-out episodes).

    Raises:
        ValueError: fewer than two episodes, or a fraction outside (0, 1).

    Examples:
        >>> from numpy import array, zeros
        >>> episodes = cj.episodes_from_arrays(
        ...     state=zeros((8, 3)), obs=zeros((8, 2, 4)), action=zeros((8, 2, 1)), reward=zeros(8),
        ...     terminal=zeros(8), truncation=array([0, 0, 0, 1, 0, 0, 0, 1]),
        ... )
        >>> train, held_out = cj.split_episodes(episodes, held_out_fraction=0.5)
        >>> len(train.reward), len(held_out.reward)
        (4, 4)
    """
    lengths = np.diff(episodes.bounds)
    if len(lengths) < 2:
        raise ValueError(f"holding out episodes needs at least 2 of them, got {len(lengths)}")
    if not 0.0 < held_out_fraction < 1.0:
        raise ValueError(f"held_out_fraction must be inside (0, 1), got {held_out_fraction}")
    num_held_out = int(np.clip(round(held_out_fraction * len(lengths)), 1, len(lengths) - 1))
    is_held_out = np.zeros(len(lengths), bool)
    is_held_out[np.random.default_rng(seed).permutation(len(lengths))[:num_held_out]] = True
    held_out_steps = np.repeat(is_held_out, lengths)
    train = jax.tree.map(lambda leaf: leaf[~held_out_steps], episodes)
    held_out = jax.tree.map(lambda leaf: leaf[held_out_steps], episodes)
    return train, held_out


def window_starts(episodes: Episodes, horizon: int) -> Int[np.ndarray, "W"]:
    """All steps t for which the steps t, ..., t + `horizon` - 1 lie inside one episode, in ascending order."""
    bounds = episodes.bounds
    end_of_episode = np.repeat(bounds[1:], np.diff(bounds))
    step = np.arange(bounds[-1])
    return step[step + horizon <= end_of_episode]


def count_short_episodes(
    terminal: Shaped[np.ndarray, "T"], truncation: Shaped[np.ndarray, "T"], horizon: int
) -> tuple[int, int]:
    """Number of episodes shorter than a window of `horizon` steps, and of those that truly end.

    No window contains their steps; in statistics, transforms and input scales they count.

    Args:
        terminal: 1 where an episode truly ended; the last step has this flag or the next.
        truncation: 1 where an episode was truncated.
        horizon: steps of a window.

    Examples:
        >>> from numpy import array
        >>> cj.data.dataset.count_short_episodes(array([0, 1, 0, 0, 0]), array([0, 0, 0, 0, 1]), horizon=3)
        (1, 1)
    """
    ends = np.flatnonzero((terminal != 0) | (truncation != 0))
    is_short = np.diff(ends, prepend=-1) < horizon
    return int(is_short.sum()), int((terminal[ends[is_short]] != 0).sum())


def make_dataset(episodes: Episodes, horizon: int) -> Dataset:
    """Moves episodes to the device for the sampling of windows of `horizon` (H) steps.

    Episodes shorter than H remain among the steps, but contain no window; `count_short_episodes` counts them.

    Raises:
        ValueError: the horizon is below 1, or no episode has H steps.

    Examples:
        >>> from numpy import array, zeros
        >>> episodes = cj.episodes_from_arrays(
        ...     state=zeros((8, 3)), obs=zeros((8, 2, 4)), action=zeros((8, 2, 1)), reward=zeros(8),
        ...     terminal=zeros(8), truncation=array([0, 0, 0, 1, 0, 0, 0, 1]),
        ... )
        >>> cj.make_dataset(episodes, horizon=3).starts.tolist()
        [0, 1, 4, 5]
    """
    if horizon < 1:
        raise ValueError(f"the horizon must be at least 1, got {horizon}")
    starts = window_starts(episodes, horizon)
    if len(starts) == 0:
        longest = np.diff(episodes.bounds).max()
        raise ValueError(f"no episode has the {horizon} steps of a window; the longest has {longest}")
    return Dataset(
        steps=Trajectory(
            state=jnp.asarray(episodes.state),
            obs=jnp.asarray(episodes.obs),
            action=jnp.asarray(episodes.action),
            reward=jnp.asarray(episodes.reward),
            terminal=jnp.asarray(episodes.terminal),
        ),
        starts=jnp.asarray(starts, jnp.int32),
        offsets=jnp.arange(horizon, dtype=jnp.int32),
    )


def one_step_dataset(trajectories: Trajectory) -> Dataset:
    """One-step trajectories `[N, 1, ...]`, such as those of a game, as a dataset of windows of one step.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> cj.sample_windows(dataset, jax.random.key(1), batch_size=5, horizon=1).action.shape
        (5, 1, 2, 1)
    """
    num = trajectories.reward.shape[0]
    return Dataset(
        steps=jax.tree.map(lambda leaf: leaf[:, 0], trajectories),
        starts=jnp.arange(num, dtype=jnp.int32),
        offsets=jnp.zeros(1, jnp.int32),
    )


def sample_index(dataset: Dataset, key: PRNGKey, batch_size: int, horizon: int) -> Int[Array, "B H"]:
    """Samples windows with replacement, uniformly over all valid starts, as indices of steps.

    Args:
        dataset: the dataset; pass it as an argument of the jitted function, not as a captured constant.
        key: consumed.
        batch_size: B, static.
        horizon: H, static, at most the horizon of the dataset.

    Returns:
        The step indices of each window; no window crosses an episode's end.

    Raises:
        ValueError: the horizon is larger than that of the dataset.
    """
    if horizon > len(dataset.offsets):
        raise ValueError(f"the dataset was made for windows of {len(dataset.offsets)} steps, {horizon} were asked for")
    draw = jax.random.randint(key, (batch_size,), 0, dataset.starts.shape[0])
    return dataset.starts[draw][:, None] + dataset.offsets[None, :horizon]


def sample_windows(dataset: Dataset, key: PRNGKey, batch_size: int, horizon: int) -> Trajectory:
    """The windows `[B, H, ...]` of `sample_index`; pure and on the device.

    One gather a leaf: a packed [T, C] array would save some 50 us of 80 for a batch of 32 windows of 20 steps on a CPU,
    less than a percent of one learner update.

    Examples:
        >>> from numpy import array, zeros
        >>> episodes = cj.episodes_from_arrays(
        ...     state=zeros((8, 3)), obs=zeros((8, 2, 4)), action=zeros((8, 2, 1)), reward=zeros(8),
        ...     terminal=zeros(8), truncation=array([0, 0, 0, 1, 0, 0, 0, 1]),
        ... )
        >>> cj.sample_windows(cj.make_dataset(episodes, 3), jax.random.key(0), batch_size=5, horizon=3).obs.shape
        (5, 3, 2, 4)
    """
    index = sample_index(dataset, key, batch_size, horizon)
    return jax.tree.map(lambda leaf: leaf[index], dataset.steps)


def episode_returns(episodes: Episodes) -> Float[np.ndarray, "N"]:
    """The undiscounted return of every episode, accumulated in float64."""
    return np.add.reduceat(episodes.reward.astype(np.float64), episodes.bounds[:-1])


def statistics(episodes: Episodes) -> dict[str, int | float]:
    """The dataset card: statistics of the episodes, as plain numbers for JSON.

    Returns:
        `num_episodes`, `num_transitions`; over the episodes `return_mean`, `return_std` (of the population),
        `return_min`, `return_max` and `return_q05` ... `return_q95`; `action_saturation`, the fraction of action
        entries at a bound, |a| >= 1; `num_nan`, the number of NaNs in all arrays (which
        make the return of their episode NaN).
    """
    returns = episode_returns(episodes)
    quantiles = np.quantile(returns, RETURN_QUANTILES)
    return {
        "num_episodes": len(returns),
        "num_transitions": len(episodes.reward),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        **{f"return_q{100 * q:02.0f}": float(value) for q, value in zip(RETURN_QUANTILES, quantiles, strict=True)},
        "action_saturation": float(np.mean(np.abs(episodes.action) >= 1.0)),
        "num_nan": sum(int(np.isnan(leaf).sum()) for leaf in jax.tree.leaves(episodes)),
    }
