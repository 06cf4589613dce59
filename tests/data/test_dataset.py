"""Episodes, their split and statistics, and windows inside an episode."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coda_jax.data import dataset


def numbered_episodes(lengths, truncated=True):
    """Episodes whose state is (episode number, step in the episode); obs and reward are functions of the state."""
    number = np.repeat(np.arange(len(lengths)), lengths)
    step = np.concatenate([np.arange(length) for length in lengths])
    end = step == np.repeat(lengths, lengths) - 1
    return dataset.episodes_from_arrays(
        state=np.stack([number, step], axis=-1),
        obs=np.stack([number, step], axis=-1)[:, None, :] + np.arange(3)[None, :, None],
        action=np.full((len(number), 3, 1), 0.5),
        reward=number + 1.0,
        terminal=end & ~np.asarray(truncated),
        truncation=end & np.asarray(truncated),
    )


def test_an_unfinished_last_episode_is_kept_as_truncated():
    episodes = dataset.episodes_from_arrays(
        state=np.zeros((5, 2)),
        obs=np.zeros((5, 1, 2)),
        action=np.zeros((5, 1, 1)),
        reward=np.zeros(5),
        terminal=np.array([False, True, False, False, False]),
        truncation=np.zeros(5, bool),
    )
    np.testing.assert_array_equal(episodes.bounds, [0, 2, 5])
    np.testing.assert_array_equal(episodes.truncation, [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(episodes.terminal, [0, 1, 0, 0, 0])
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(episodes))


def test_a_finished_last_episode_stays_terminal_and_arguments_are_not_modified():
    truncation = np.zeros(2, np.float32)
    terminal = np.array([0, 1], np.float32)
    zeros = np.zeros((2, 1, 1))
    episodes = dataset.episodes_from_arrays(zeros[:, 0], zeros, zeros, zeros[:, 0, 0], terminal, truncation)
    assert episodes.truncation.tolist() == [0, 0]
    dataset.episodes_from_arrays(zeros[:, 0], zeros, zeros, zeros[:, 0, 0], np.zeros(2), truncation)
    assert truncation.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": np.zeros(3)}, "one length"),
        ({"obs": np.zeros((4, 2))}, r"obs \[T, A, O\]"),
        ({name: np.zeros((0, 1, 1)[:rank]) for name, rank in [("state", 2), ("obs", 3), ("action", 3)]}, "one length"),
    ],
)
def test_inconsistent_arrays_are_refused(change, message):
    arrays = {
        "state": np.zeros((4, 2)),
        "obs": np.zeros((4, 2, 3)),
        "action": np.zeros((4, 2, 1)),
        "reward": np.zeros(4),
        "terminal": np.zeros(4),
        "truncation": np.zeros(4),
    }
    with pytest.raises(ValueError, match=message):
        dataset.episodes_from_arrays(**(arrays | change))


def test_concatenation_keeps_episodes_apart():
    joined = dataset.concatenate([numbered_episodes([3, 2]), numbered_episodes([4], truncated=False)])
    np.testing.assert_array_equal(joined.bounds, [0, 3, 5, 9])
    with pytest.raises(ValueError, match="at least one"):
        dataset.concatenate([])


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    horizon=st.integers(1, 8),
    data=st.data(),
)
def test_window_starts_are_all_windows_inside_an_episode(lengths, horizon, data):
    truncated = data.draw(st.booleans())
    episodes = numbered_episodes(lengths, truncated)
    number = np.repeat(np.arange(len(lengths)), lengths)
    valid = [t for t in range(len(number) - horizon + 1) if len(set(number[t : t + horizon])) == 1]
    assert dataset.window_starts(episodes, horizon).tolist() == valid
    assert len(valid) == sum(max(0, length - horizon + 1) for length in lengths)


def test_sampled_windows_are_consecutive_steps_of_one_episode_with_all_leaves_aligned():
    made = dataset.make_dataset(numbered_episodes([5, 2, 9, 1, 4]), horizon=4)
    sample = jax.jit(dataset.sample_windows, static_argnums=(2, 3))
    windows = sample(made, jax.random.key(0), 64, 4)
    number, step = np.asarray(windows.state[..., 0]), np.asarray(windows.state[..., 1])
    assert windows.obs.shape == (64, 4, 3, 2) and windows.action.shape == (64, 4, 3, 1)
    np.testing.assert_array_equal(number, np.repeat(number[:, :1], 4, axis=1))
    np.testing.assert_array_equal(np.diff(step, axis=1), 1)
    assert set(number[:, 0]) == {0, 2, 4}  # episodes of one or two steps contain no window
    np.testing.assert_array_equal(windows.obs[..., 2, :], np.asarray(windows.state) + 2)
    np.testing.assert_array_equal(windows.reward, number + 1)
    np.testing.assert_array_equal(windows.terminal, 0)  # a time limit is not an end
    shorter = sample(made, jax.random.key(0), 64, 2)
    np.testing.assert_array_equal(shorter.state, windows.state[:, :2])


def test_sampling_is_uniform_over_the_valid_starts():
    made = dataset.make_dataset(numbered_episodes([7, 30, 3, 20]), horizon=5)
    num_starts = 3 + 26 + 16
    assert made.starts.shape == (num_starts,)
    windows = dataset.sample_windows(made, jax.random.key(1), 45_000, 1)
    first_step = 100 * np.asarray(windows.state[:, 0, 0]) + np.asarray(windows.state[:, 0, 1])
    _, counts = np.unique(first_step, return_counts=True)
    assert len(counts) == num_starts
    assert stats.chisquare(counts).pvalue > 1e-3


def test_seeds_draw_different_windows_from_one_shared_dataset():
    made = dataset.make_dataset(numbered_episodes([50]), horizon=2)
    windows = jax.vmap(lambda key: dataset.sample_windows(made, key, 8, 2))(jax.random.split(jax.random.key(2), 3))
    assert windows.reward.shape == (3, 8, 2)
    alone = dataset.sample_windows(made, jax.random.split(jax.random.key(2), 3)[1], 8, 2)
    np.testing.assert_array_equal(windows.state[1], alone.state)
    assert not np.array_equal(windows.state[0], windows.state[1])


def test_a_dataset_is_a_pytree():
    made = dataset.make_dataset(numbered_episodes([6]), horizon=3)
    shapes = jax.eval_shape(lambda d: jax.tree.map(lambda leaf: leaf[None], d), made)
    assert shapes.starts.shape == (1, 4) and shapes.offsets.shape == (1, 3) and shapes.steps.reward.shape == (1, 6)
    assert jax.tree.map(lambda leaf: None, made).steps.state is None


@pytest.mark.parametrize(
    ("horizon", "message"), [(6, "no episode has the 6 steps of a window; the longest has 5"), (0, "1")]
)
def test_impossible_horizons_are_refused(horizon, message):
    with pytest.raises(ValueError, match=message):
        dataset.make_dataset(numbered_episodes([5, 2]), horizon)


def test_windows_longer_than_the_dataset_was_made_for_are_refused():
    made = dataset.make_dataset(numbered_episodes([9]), horizon=3)
    with pytest.raises(ValueError, match="windows of 3 steps, 4 were asked for"):
        dataset.sample_windows(made, jax.random.key(0), 2, 4)


@given(
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=40),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_the_split_is_disjoint_complete_and_by_whole_episodes(lengths, fraction, seed):
    episodes = numbered_episodes(lengths)
    train, held_out = dataset.split_episodes(episodes, fraction, seed)
    numbers = [np.unique(part.state[:, 0]).astype(int).tolist() for part in (train, held_out)]
    assert sorted(numbers[0] + numbers[1]) == list(range(len(lengths)))
    assert all(numbers)
    assert abs(len(numbers[1]) - fraction * len(lengths)) <= 1
    for part, members in zip((train, held_out), numbers, strict=True):
        np.testing.assert_array_equal(np.diff(part.bounds), [lengths[k] for k in members])


def test_the_split_follows_its_seed():
    episodes = numbered_episodes([2] * 30)
    held_out = [dataset.split_episodes(episodes, 0.1, seed)[1].state for seed in (0, 0, 1)]
    assert held_out[0].shape == (6, 2)
    np.testing.assert_array_equal(held_out[0], held_out[1])
    assert not np.array_equal(held_out[0], held_out[2])


@pytest.mark.parametrize(("lengths", "fraction"), [([4], 0.1), ([4, 4], 0.0), ([4, 4], 1.0), ([4, 4], float("nan"))])
def test_impossible_splits_are_refused(lengths, fraction):
    with pytest.raises(ValueError, match=r"at least 2|inside"):
        dataset.split_episodes(numbered_episodes(lengths), fraction)


def test_statistics_in_closed_form():
    # Episode k has the reward k + 1 in each step: returns 1 * 2, 2 * 3, 3 * 4, 4 * 5.
    episodes = numbered_episodes([2, 3, 4, 5])
    episodes.action[0, :, 0] = [1.0, -1.0, 0.999]
    returns = np.array([2.0, 6.0, 12.0, 20.0])
    np.testing.assert_array_equal(dataset.episode_returns(episodes), returns)
    card = dataset.statistics(episodes)
    assert card == pytest.approx(
        {
            "num_episodes": 4,
            "num_transitions": 14,
            "return_mean": 10.0,
            "return_std": np.sqrt(46.0),  # deviations 8, 4, 2, 10
            "return_min": 2.0,
            "return_max": 20.0,
            "return_q05": 2.0 + 0.15 * 4.0,
            "return_q25": 2.0 + 0.75 * 4.0,
            "return_q50": 9.0,
            "return_q75": 12.0 + 0.25 * 8.0,
            "return_q95": 12.0 + 0.85 * 8.0,
            "action_saturation": 2 / 42,
            "num_nan": 0,
        }
    )


def test_statistics_count_nans_without_warnings():
    episodes = numbered_episodes([2, 3])
    episodes.reward[0] = episodes.state[4, 1] = np.nan
    card = dataset.statistics(episodes)
    assert card["num_nan"] == 2
    assert np.isnan(card["return_mean"])
