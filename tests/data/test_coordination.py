"""Data of scripted teams: shares of conventions, coverage, noise, and the returns that follow from them."""

import jax
import numpy as np
import pytest

from coda_jax.data.coordination import SameSideData, convention_episodes
from coda_jax.data.dataset import episode_returns
from coda_jax.envs.coordination import SameSide, convention_return, reward


def directions(episodes):
    """The direction of every agent in every episode `[N, A]`, told by the mean of its actions."""
    return np.sign(episodes.action[..., 0].reshape(-1, 10, episodes.action.shape[1]).mean(axis=1))


def test_shares_of_the_conventions():
    episodes = convention_episodes(SameSideData(coverage=0.2, up_share=0.75), jax.random.key(0))
    np.testing.assert_array_equal(np.diff(episodes.bounds), np.full(2000, 10))
    assert episodes.terminal.sum() == 0
    agreed = np.abs(directions(episodes).sum(axis=1)) == 2
    up = directions(episodes).sum(axis=1) == 2
    # A half of the mixed fifth agree by chance: a fifth of 400 in each direction, standard deviation 9.
    assert abs(up.sum() - (1200 + 100)) < 45 and abs(agreed.sum() - 1800) < 45


@pytest.mark.parametrize("num_agents", [2, 4])
def test_without_coverage_all_agents_of_a_team_move_alike(num_agents):
    config = SameSideData(task=SameSide(num_agents=num_agents), num_episodes=100, coverage=0.0)
    direction = directions(convention_episodes(config, jax.random.key(1)))
    assert (direction == direction[:, :1]).all() and direction[:, 0].sum() == 0


def test_a_fifth_of_mixed_conventions_costs_a_fifth_of_the_return():
    mean = {
        share: episode_returns(convention_episodes(SameSideData(coverage=share), jax.random.key(0))).mean()
        for share in (0.0, 0.2)
    }
    assert abs(mean[0.2] - 6.65) < 0.3  # standard error 0.08
    assert abs(mean[0.2] - 0.8 * mean[0.0]) < 0.25  # directions drawn independently cancel on average


def test_without_noise_and_coverage_the_data_return_what_a_convention_does():
    config = SameSideData(task=SameSide(num_agents=3, sharpness=4.0), coverage=0.0, noise=0.0)
    returns = episode_returns(convention_episodes(config, jax.random.key(0)))
    assert abs(returns.mean() - convention_return(config.task)) < 4 * returns.std() / np.sqrt(len(returns))


def test_steps_belong_together():
    config = SameSideData(num_episodes=20)
    episodes = convention_episodes(config, jax.random.key(2))
    position = episodes.state[:, :2].reshape(20, 10, 2)
    action = episodes.action[..., 0].reshape(20, 10, 2)
    np.testing.assert_allclose(position[:, 1:], position[:, :-1] + 0.25 * action[:, :-1], atol=1e-6)
    np.testing.assert_array_equal(episodes.obs[..., 0], episodes.state[:, :2])
    np.testing.assert_allclose(episodes.state[:, 2], np.tile(np.arange(10) / 10, 20), rtol=1e-6)
    led = jax.numpy.asarray((position + 0.25 * action).reshape(-1, 2))
    np.testing.assert_allclose(episodes.reward, reward(config.task, led), atol=1e-5)


def test_the_same_key_gives_the_same_data():
    first, second = (convention_episodes(SameSideData(num_episodes=10), jax.random.key(3)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("change", [{"coverage": 1.5}, {"up_share": -0.1}, {"noise": -1.0}, {"num_episodes": 0}])
def test_settings_outside_their_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        SameSideData(**change)
