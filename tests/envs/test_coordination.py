"""Same side against closed forms, exact planning on a lattice, and its own symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.envs.coordination import (
    EPISODE_LENGTH,
    SameSide,
    convention_return,
    move,
    optimal_return,
    reward,
    same_side,
)
from coda_jax.envs.rollout import episode_returns, rollout

SHARP = SameSide(num_agents=3, sharpness=4.0, half_width=0.5)


def everyone(direction):
    """A policy that moves all agents in one direction at full speed."""

    def act(obs, carry, key):
        del key
        return jnp.full((*obs.shape[:2], 1), direction), carry

    return act


def mean_tanh(half_width, shift):
    """The mean of tanh(3 (x + shift)) over x uniform in [-half_width, half_width], in closed form."""

    def antiderivative(x):
        return np.log(np.cosh(3.0 * x)) / 3.0

    return (antiderivative(shift + half_width) - antiderivative(shift - half_width)) / (2.0 * half_width)


def test_at_sharpness_one_the_reward_is_the_smooth_product():
    position = jax.random.normal(jax.random.key(0), (50, 2))
    expected = np.prod(np.tanh(3.0 * np.asarray(position)), axis=-1)
    np.testing.assert_allclose(reward(SameSide(), position), expected, atol=1e-6)


def test_more_agents_are_rewarded_by_the_mean_over_pairs():
    position = jax.random.normal(jax.random.key(0), (50, 4))
    y = np.tanh(3.0 * np.asarray(position))
    pairs = [y[:, i] * y[:, j] for i in range(4) for j in range(i)]
    np.testing.assert_allclose(reward(SameSide(num_agents=4), position), np.mean(pairs, axis=0), atol=1e-6)


def test_sharpness_changes_the_reward_of_different_sides_alone():
    same, far, near = jnp.array([0.3, 1.0]), jnp.array([-2.0, 2.0]), jnp.array([-0.1, 0.1])
    smooth, sharp = SameSide(), SameSide(sharpness=4.0)
    np.testing.assert_allclose(reward(sharp, same), reward(smooth, same), rtol=1e-6)
    np.testing.assert_allclose(reward(sharp, far), 4.0 * reward(smooth, far), rtol=1e-3)  # both saturate
    np.testing.assert_allclose(reward(sharp, near), -4.0 * np.tanh(0.3) ** 8, rtol=1e-5)
    assert float(reward(sharp, near)) > float(reward(smooth, near))


@pytest.mark.parametrize("num_agents", [2, 3])
def test_a_conventions_return_has_a_closed_form_at_sharpness_one(num_agents):
    config = SameSide(num_agents=num_agents, half_width=0.7)
    expected = sum(mean_tanh(0.7, 0.25 * t) ** 2 for t in range(1, EPISODE_LENGTH + 1))
    np.testing.assert_allclose(convention_return(config), expected, rtol=1e-4)


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_both_conventions_return_what_is_computed(direction):
    returns = episode_returns(same_side(SHARP), everyone(direction), (), jax.random.key(0), 20_000)
    standard_error = float(returns.std()) / np.sqrt(len(returns))
    assert abs(float(returns.mean()) - convention_return(SHARP)) < 4 * standard_error


def lattice_values(config):
    """Best returns of two agents, by backward induction on a lattice with spacing 0.025, of which a step covers 10.

    The lattice holds all that is reachable from starts inside [-1, 1].
    """
    axis = np.arange(-140, 141) * 0.025
    y = np.tanh(3.0 * axis)
    product = np.outer(y, y)
    gain = np.where(product >= 0, product, -config.sharpness * np.abs(product) ** config.sharpness)
    value = np.zeros_like(gain)
    for _ in range(EPISODE_LENGTH):
        ahead = np.pad(gain + value, 10, constant_values=-np.inf)
        for dimension in (0, 1):  # moves by -10 to 10 nodes along either axis
            ahead = np.lib.stride_tricks.sliding_window_view(ahead, 21, axis=dimension).max(axis=-1)
        value = ahead
    return axis, value


@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_the_optimum_agrees_with_planning_on_a_lattice(sharpness):
    config = SameSide(sharpness=sharpness, half_width=1.0)
    axis, value = lattice_values(config)
    inside = np.abs(axis) < 1.0 - 1e-9
    expected = value[np.ix_(inside, inside)].mean()
    found = optimal_return(config, jax.random.key(0), num_starts=4000)
    assert convention_return(config) < found
    assert abs(found - expected) < 0.05  # 4000 starts, standard error 0.02


def test_set_state_restores_state_time_and_observations():
    env = same_side(SHARP)
    now = env.reset(jax.random.key(1))
    for _ in range(4):
        now = env.step(now, jnp.full((3, 1), 0.3))
    again = env.set_state(now.state)
    np.testing.assert_array_equal(again.state, now.state)
    np.testing.assert_array_equal(again.obs, now.obs)
    assert int(again.time) == int(now.time) == 4
    step = jax.jit(env.step)
    jax.tree.map(np.testing.assert_array_equal, step(again, jnp.full((3, 1), -1.0)), step(now, jnp.full((3, 1), -1.0)))


def test_agents_see_their_own_position_and_the_time():
    env = same_side(SHARP)
    now = env.set_state(jnp.array([0.1, -0.2, 0.3, 0.5]))
    np.testing.assert_allclose(now.obs, [[0.1, 0.5], [-0.2, 0.5], [0.3, 0.5]])
    after = env.step(now, jnp.array([[1.0], [0.0], [-5.0]]))
    np.testing.assert_allclose(after.state, [0.35, -0.2, 0.05, 0.6], rtol=1e-6)
    np.testing.assert_allclose(move(jnp.array([0.3]), jnp.array([-5.0])), [0.05], rtol=1e-6)


def test_episodes_last_ten_steps_and_have_no_true_end():
    recorded = rollout(same_side(), everyone(1.0), (), jax.random.key(0), 2, 3 * EPISODE_LENGTH)
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(recorded.truncated[:, 0])), [9, 19, 29])
    assert float(recorded.steps.terminal.sum()) == 0.0
    start = np.asarray(recorded.steps.state[::10, :, :2])
    assert np.abs(start).max() <= 0.5 and len(np.unique(start)) == start.size
    env = same_side()
    late = env.set_state(jnp.array([0.0, 0.0, 0.9]))
    assert not bool(late.truncated) and bool(env.step(late, jnp.zeros((2, 1))).truncated)


def test_agents_and_sides_are_interchangeable():
    env = same_side(SHARP)
    position, action = jax.random.normal(jax.random.key(0), (2, 5, 3))
    order = jnp.array([2, 0, 1])

    def after(position, action):
        state = jnp.concatenate([position, jnp.zeros((5, 1))], axis=-1)
        return jax.vmap(env.step)(jax.vmap(env.set_state)(state), action[..., None])

    here = after(position, action)
    permuted = after(position[:, order], action[:, order])
    np.testing.assert_allclose(here.reward, permuted.reward, rtol=1e-5)
    np.testing.assert_array_equal(here.obs[:, order], permuted.obs)
    np.testing.assert_allclose(here.reward, after(-position, -action).reward, rtol=1e-5)


@pytest.mark.parametrize("change", [{"num_agents": 1}, {"sharpness": 0.5}, {"half_width": 0.0}])
def test_settings_outside_their_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        SameSide(**change)
