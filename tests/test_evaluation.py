"""Sample quality in the drift environment, where next states are known in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax import transforms
from coda_jax.data.dataset import sample_windows
from coda_jax.envs.rollout import rollout
from coda_jax.evaluation import (
    action_response,
    discounted_returns,
    nearest_distance,
    play_from,
    replay_error,
    sample_quality,
    shuffled_actions,
    shuffled_steps,
)
from tests import linear
from tests.drift import DRIFT, SPEC

B, H = 400, 4
MEASURE = jax.jit(lambda trajectory, reference: sample_quality(DRIFT, trajectory, reference))


def record(seed: int):
    """Real windows `[B, H, ...]` of random actions."""

    def act(obs, carry, key):
        return jax.random.uniform(key, (B, SPEC.num_agents, SPEC.action_dim), minval=-1.0), carry

    recorded = jax.jit(lambda key: rollout(DRIFT, act, (), key, B, H))(jax.random.key(seed))
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), recorded.steps)


REAL, REFERENCE = record(0), record(1)


def test_real_data_has_no_error():
    quality = MEASURE(REAL, REFERENCE)
    assert quality.observation_error == 0
    assert quality.dynamics_error < 1e-6
    assert quality.reward_error < 1e-6
    np.testing.assert_allclose(quality.optimism, 0.0, atol=1e-6)
    assert np.max(quality.feature_distance) < 0.15  # two samples of 400
    assert np.max(MEASURE(REFERENCE, REFERENCE).feature_distance) == 0


def test_the_dynamics_error_is_the_distance_to_the_simulated_state():
    std = jnp.std(REFERENCE.state, axis=(0, 1))
    # Every second token is off by half a standard deviation: no step's start and end are both right.
    off = 0.5 * np.asarray(std) * (np.arange(H) % 2 == 1).reshape(1, H, 1)
    quality = MEASURE(dataclasses.replace(REAL, state=REAL.state + off), REFERENCE)
    np.testing.assert_allclose(quality.dynamics_error, 0.5, rtol=1e-4)
    one_feature = off * np.array([1.0, 0.0])
    quality = MEASURE(dataclasses.replace(REAL, state=REAL.state + one_feature), REFERENCE)
    np.testing.assert_allclose(quality.dynamics_error, 0.5 / np.sqrt(2), rtol=1e-4)


def test_observations_and_rewards_are_compared_with_the_environments():
    quality = MEASURE(dataclasses.replace(REAL, obs=REAL.obs + 0.3 * jnp.std(REFERENCE.obs)), REFERENCE)
    np.testing.assert_allclose(quality.observation_error, 0.3, rtol=0.05)
    quality = MEASURE(dataclasses.replace(REAL, reward=REAL.reward - 0.7 * jnp.std(REFERENCE.reward)), REFERENCE)
    np.testing.assert_allclose(quality.reward_error, 0.7, rtol=1e-4)
    np.testing.assert_allclose(quality.optimism, -0.7, rtol=1e-4)


def test_optimism_is_the_generated_minus_the_simulated_reward():
    def step_with_state_reward(state, action):
        return dataclasses.replace(DRIFT.step(state, action), reward=jnp.sum(state.state))

    env = DRIFT._replace(step=step_with_state_reward)
    steps = dataclasses.replace(REAL, reward=jnp.sum(REAL.state, axis=-1))
    std = jnp.std(steps.reward)
    true = sample_quality(env, steps, steps)
    np.testing.assert_allclose([true.reward_error, true.optimism], 0.0, atol=1e-5)
    # From the second token on, states and rewards are higher than those of the simulated actions: the reward of each
    # single step is correct, but the actions simulated from the first state have lower rewards.
    better = jnp.where(jnp.arange(H) > 0, std, 0.0)[None]
    optimistic = dataclasses.replace(steps, state=steps.state + better[..., None] / 2, reward=steps.reward + better)
    quality = sample_quality(env, optimistic, steps)
    np.testing.assert_allclose(quality.reward_error, 0.0, atol=1e-5)
    np.testing.assert_allclose(quality.optimism, (H - 2) / (H - 1), rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_action_response_is_the_fraction_of_the_true_effect(share):
    """With arbitrary errors of the unguided trajectories, and the same errors of the guided ones."""
    std = jnp.std(REFERENCE.state, axis=(0, 1))
    key_change, key_error = jax.random.split(jax.random.key(2))
    change = jax.random.uniform(key_change, REAL.action.shape, minval=-0.5, maxval=0.5)
    error = jax.random.normal(key_error, REAL.state.shape)

    def follow(action):
        done = 0.1 * jnp.cumsum(action, axis=1)[..., 0]  # states follow this action
        exact = REAL.state[:, :1] + jnp.concatenate([jnp.zeros_like(done[:, :1]), done[:, :-1]], axis=1)
        return dataclasses.replace(REAL, state=exact + error, action=action)

    unguided = follow(REAL.action)
    guided = dataclasses.replace(follow(REAL.action + share * change), action=REAL.action + change)
    response = jax.jit(lambda *arguments: action_response(DRIFT, *arguments))
    np.testing.assert_allclose(response(guided, unguided, std), share, atol=1e-4)
    impossible = dataclasses.replace(guided, state=guided.state.at[0, 1].set(1e9))
    np.testing.assert_allclose(response(impossible, unguided, std), share, atol=1e-4)
    assert jnp.isnan(response(unguided, unguided, std))


def test_the_replay_error_adds_up_over_the_steps_since_the_trajectory_s_own_state():
    """Every next state misses by a quarter of a deviation more than the one before: after k steps by k quarters."""
    std = jnp.std(REFERENCE.state, axis=(0, 1))
    drifting = dataclasses.replace(REAL, state=REAL.state + 0.25 * std[None, None] * jnp.arange(H).reshape(1, H, 1))
    error = jax.jit(lambda trajectory, num_steps: replay_error(DRIFT, trajectory, std, num_steps))
    for num_steps in (1, 2, H - 1):
        np.testing.assert_allclose(error(drifting, jnp.int32(num_steps)), 0.25 * num_steps, rtol=1e-4)
        np.testing.assert_allclose(error(REAL, jnp.int32(num_steps)), 0.0, atol=1e-5)
    one_feature = dataclasses.replace(drifting, state=drifting.state.at[..., 1].set(REAL.state[..., 1]))
    np.testing.assert_allclose(error(one_feature, jnp.int32(2)), 0.5 / np.sqrt(2), rtol=1e-4)
    impossible = dataclasses.replace(REAL, state=REAL.state.at[:50].set(jnp.nan))
    np.testing.assert_allclose(error(impossible, jnp.int32(1)), 0.0, atol=1e-5)


def test_the_nearest_recorded_state():
    recorded = jnp.array([[0.0, 0.0], [10.0, 0.0], [0.0, 100.0]])
    std = jnp.array([1.0, 10.0])
    states = jnp.array([[[3.0, 40.0], [9.0, 0.0]], [[0.0, 100.0], [7.0, 0.0]], [[3.0, -40.0], [3.0, 40.0]]])
    # To the first 5 / sqrt(2), to the second 1 / sqrt(2), to the third 0, to the second 3 / sqrt(2), twice the first.
    np.testing.assert_allclose(nearest_distance(states, recorded, std), 4 / np.sqrt(2), rtol=1e-5)
    ignored = nearest_distance(states, recorded, std * jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(ignored, 3 / np.sqrt(2), rtol=1e-5)


def test_feature_distance_of_a_shift():
    quality = MEASURE(
        dataclasses.replace(REFERENCE, reward=REFERENCE.reward + 2 * jnp.std(REFERENCE.reward)), REFERENCE
    )
    expected = np.zeros(transforms.num_channels(SPEC))
    expected[-2] = 2.0  # reward, before the terminal, which is constant
    np.testing.assert_allclose(quality.feature_distance, expected, atol=1e-5)


@pytest.mark.parametrize("shuffle", [shuffled_actions, shuffled_steps])
def test_shuffling_keeps_marginals_but_not_dynamics(shuffle):
    real, shuffled = MEASURE(REAL, REFERENCE), MEASURE(shuffle(REAL), REFERENCE)
    np.testing.assert_allclose(shuffled.feature_distance, real.feature_distance, atol=1e-6)
    assert shuffled.dynamics_error > 0.03


def test_a_play_begins_at_the_last_state_of_its_window_with_the_memory_of_the_tokens_before():
    """The policy adds up what it sees, so its first action shows what its memory holds."""
    learner = linear.POLICY._replace(
        act=lambda state, obs, carry: (0.1 * (carry + obs), carry + obs),
        initial_carry=lambda shape: jnp.zeros((*shape, 1, 1)),
    )
    windows = sample_windows(linear.DATASET, jax.random.key(0), 5, linear.H)
    played = play_from(linear.ENV, learner, (), windows, 3)
    np.testing.assert_array_equal(played.state[:, 0], windows.state[:, -1])
    seen = jnp.sum(windows.obs[:, :-1], axis=(1, 2)) + windows.state[:, -1]
    np.testing.assert_allclose(played.action[:, 0, 0], 0.1 * seen, rtol=1e-5)
    np.testing.assert_allclose(played.state[:, 1], 0.9 * played.state[:, 0] + 0.8 * played.action[:, 0, 0], rtol=1e-5)


def test_the_discounted_return_of_a_constant_action_is_that_of_its_closed_form():
    """With x' = 0.9 x + 0.48 and r = x + 0.6, x_t - 4.8 falls by 0.9 a step."""
    windows = sample_windows(linear.DATASET, jax.random.key(0), 5, linear.H)
    played = play_from(linear.ENV, linear.POLICY, (), windows, 400)
    found = discounted_returns(played, 0.95)
    expected = (4.8 + 0.6) / 0.05 + (windows.state[:, -1, 0] - 4.8) / (1.0 - 0.95 * 0.9)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_nothing_counts_behind_a_true_end():
    reward, terminal = jnp.ones((1, 4)), jnp.array([[0.0, 1.0, 0.0, 0.0]])
    played = sample_windows(linear.DATASET, jax.random.key(0), 1, 4)
    played = dataclasses.replace(played, reward=reward, terminal=terminal)
    assert discounted_returns(played, 0.5).tolist() == [1.5]
