"""Data of scripted teams of simple spread: conventions, coverage, and the returns that follow from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.data.dataset import episode_returns
from coda_jax.data.spread import SpreadData, landmarks_of, scripted_team, spread_episodes, spread_return
from coda_jax.envs.simple_spread import nearest_landmarks, simple_spread
from coda_jax.ranges import RangeError


def shifts(landmark):
    """The convention that each agent follows `[N, A]`."""
    num_agents = landmark.shape[1]
    return (np.asarray(landmark) - np.arange(num_agents)) % num_agents


def test_without_coverage_a_team_has_one_convention_and_the_conventions_have_equal_shares():
    shift = shifts(landmarks_of(SpreadData(num_agents=4, num_conventions=3, num_episodes=300), jax.random.key(0)))
    assert (shift == shift[:, :1]).all()
    np.testing.assert_array_equal(np.bincount(shift[:, 0]), [100, 100, 100])


def test_mixed_teams_draw_each_agents_convention():
    shift = shifts(landmarks_of(SpreadData(num_episodes=4000, coverage=0.5), jax.random.key(1)))
    agreed = (shift == shift[:, :1]).all(axis=1).mean()
    assert shift.max() == 1
    assert abs(agreed - (0.5 + 0.5 * 2 / 8)) < 5 * np.sqrt(0.5 * 0.25 * 0.75 / 4000)


@pytest.mark.parametrize("convention", [0, 1, 2])
def test_agents_of_one_convention_end_at_their_landmarks(convention):
    env = simple_spread()
    landmark = jnp.broadcast_to((jnp.arange(3) + convention) % 3, (16, 3))
    act = scripted_team(landmark, noise=0.0)

    @jax.jit
    def step(now, key):
        action, _ = act(now.obs, (), key)
        return jax.vmap(env.step)(now, action)

    now = jax.vmap(env.reset)(jax.random.split(jax.random.key(2), 16))
    # Landmarks closer than two radii cannot be shared out without contact.
    marks = now.state[:, 12:18].reshape(16, 3, 2)
    gap = np.linalg.norm(marks[:, :, None] - marks[:, None], axis=-1) + 9 * np.eye(3)
    for key in jax.random.split(jax.random.key(3), 25):
        now = step(now, key)
    apart = gap.min(axis=(1, 2)) > 0.35
    assert apart.sum() >= 5
    np.testing.assert_array_equal(nearest_landmarks(now.state)[apart], landmark[apart])
    assert (now.reward[apart] > 20.0).mean() > 0.8


@pytest.mark.slow
def test_mixed_conventions_cost_a_part_of_the_return():
    one, mixed = (
        episode_returns(spread_episodes(SpreadData(num_episodes=200, coverage=share), jax.random.key(4))).mean()
        for share in (0.0, 1.0)
    )
    # A fourth of the mixed teams agree by chance; the others leave a landmark out and two agents on another. Standard
    # errors of the means: about 6.
    assert one > 400 and mixed < 0.87 * one
    assert spread_return(3, num_episodes=200) > one


def test_settings_outside_their_range_are_refused():
    with pytest.raises(RangeError, match="num_conventions is 4; there are 3"):
        SpreadData(num_conventions=4)
    with pytest.raises(RangeError, match="coverage"):
        SpreadData(coverage=1.5)
