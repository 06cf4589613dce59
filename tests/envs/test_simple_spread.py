"""Simple spread against its published equations, written out once more in plain numpy, entity by entity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.envs.rollout import episode_returns, rollout
from coda_jax.envs.simple_spread import (
    EPISODE_LENGTH,
    EXPERT_RETURN,
    RANDOM_RETURN,
    contact_force,
    simple_spread,
    team_reward,
)

ENV = simple_spread()


def published_step(position, velocity, landmark, action):
    """MPE's world step and OMAR's scenario, loop by loop in double precision: (position, velocity, agents' rewards)."""
    force = [5.0 * u for u in action]
    for a in range(len(position)):
        for b in range(a + 1, len(position)):
            delta = position[a] - position[b]
            dist = np.sqrt(np.sum(np.square(delta)))
            penetration = np.logaddexp(0, -(dist - 0.3) / 1e-3) * 1e-3
            push = 1e2 * delta / dist * penetration
            force[a], force[b] = force[a] + push, force[b] - push
    velocity = [v * (1 - 0.25) + f * 0.1 for v, f in zip(velocity, force, strict=True)]
    position = [p + v * 0.1 for p, v in zip(position, velocity, strict=True)]
    rewards = []
    for a in range(len(position)):
        reward = sum(min(1.0 / min(np.linalg.norm(p - mark) for p in position), 10.0) for mark in landmark)
        rewards.append(reward - 5 * sum(b != a and np.linalg.norm(position[b] - position[a]) < 0.3 for b in range(3)))
    return np.array(position), np.array(velocity), rewards


def published_obs(position, velocity, landmark, agent):
    marks = [mark - position[agent] for mark in landmark]
    others = [position[b] - position[agent] for b in range(3) if b != agent]
    return np.concatenate([velocity[agent], position[agent], *marks, *others, np.zeros(4)])


def random_worlds(num, seed=0):
    """(positions, velocities, landmarks, actions) `[num, 3, 2]`; in half of them the agents overlap."""
    rng = np.random.default_rng(seed)
    position = rng.uniform(-1, 1, (num, 3, 2)) * np.where(np.arange(num) % 2, 1.0, 0.15)[:, None, None]
    return position, rng.normal(size=(num, 3, 2)), rng.uniform(-1, 1, (num, 3, 2)), rng.uniform(-1, 1, (num, 3, 2))


def test_steps_follow_the_published_equations():
    position, velocity, landmark, action = random_worlds(40)
    packed = np.concatenate([x.reshape(40, -1) for x in (position, velocity, landmark)] + [np.full((40, 1), 0.4)], 1)
    now = jax.vmap(ENV.set_state)(jnp.asarray(packed, jnp.float32))
    after = jax.jit(jax.vmap(ENV.step))(now, jnp.asarray(action, jnp.float32))
    for k in range(40):
        expected = published_step(position[k], velocity[k], landmark[k], action[k])
        np.testing.assert_allclose(after.state[k, :6].reshape(3, 2), expected[0], atol=2e-5)
        np.testing.assert_allclose(after.state[k, 6:12].reshape(3, 2), expected[1], atol=2e-4)
        np.testing.assert_allclose(after.state[k, 12:18].reshape(3, 2), landmark[k], atol=1e-6)
        np.testing.assert_allclose(after.reward[k], np.mean(expected[2]), rtol=2e-3)
        for agent in range(3):
            np.testing.assert_allclose(
                after.obs[k, agent], published_obs(expected[0], expected[1], landmark[k], agent), atol=2e-4
            )


def test_sizes_are_those_of_the_public_datasets():
    spec = ENV.spec
    assert (spec.num_agents, spec.obs_dim, spec.action_dim, spec.episode_length) == (3, 18, 2, 25)
    assert spec.state_dim == 19
    with pytest.raises(ValueError, match="2 to 10 agents"):
        simple_spread(11)


def test_random_play_returns_what_the_public_results_are_normalised_by():
    def act(obs, carry, key):
        return jax.random.uniform(key, (*obs.shape[:2], 2), minval=-1.0, maxval=1.0), carry

    returns = jax.jit(lambda key: episode_returns(ENV, act, (), key, 8000))(jax.random.key(0))
    standard_error = float(returns.std()) / np.sqrt(len(returns))
    assert abs(float(returns.mean()) - RANDOM_RETURN) < 3.0 + 3 * standard_error
    assert EXPERT_RETURN < 3 * 10.0 * EPISODE_LENGTH


def test_contacts_push_agents_apart_with_equal_and_opposite_forces():
    near = contact_force(jnp.array([[0.0, 0.0], [0.2, 0.0], [3.0, 3.0]]))
    np.testing.assert_allclose(near, [[-10.0, 0.0], [10.0, 0.0], [0.0, 0.0]], atol=1e-4)  # overlap 0.1 times 100
    same_place = contact_force(jnp.zeros((3, 2)))
    np.testing.assert_array_equal(same_place, np.zeros((3, 2)))


def test_the_best_reward_is_an_agent_on_every_landmark():
    marks = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert float(team_reward(marks, marks)) == 30.0
    # Two of three stand on one landmark: each of the two pays 5, a third of 10 a head.
    crowded = team_reward(marks.at[1].set(marks[0]), marks)
    np.testing.assert_allclose(crowded, 10.0 + 1.0 + 10.0 - 10.0 / 3.0, rtol=1e-6)


def test_set_state_restores_state_time_and_observations():
    zeros = jnp.zeros((3, 2))
    now = ENV.reset(jax.random.key(1))
    for _ in range(7):
        now = ENV.step(now, zeros + 0.3)
    again = ENV.set_state(now.state)
    np.testing.assert_array_equal(again.state, now.state)
    np.testing.assert_array_equal(again.obs, now.obs)
    assert int(again.time) == int(now.time) == 7
    following, expected = ENV.step(again, zeros), ENV.step(now, zeros)
    jax.tree.map(np.testing.assert_array_equal, following, expected)


def test_episodes_last_25_steps_and_have_no_true_end():
    def act(obs, carry, key):
        return jnp.zeros((*obs.shape[:2], 2)), carry

    recorded = rollout(ENV, act, (), jax.random.key(0), 2, 3 * EPISODE_LENGTH)
    ends = np.flatnonzero(np.asarray(recorded.truncated[:, 0]))
    np.testing.assert_array_equal(ends, [24, 49, 74])
    assert float(recorded.steps.terminal.sum()) == 0.0
    np.testing.assert_allclose(recorded.steps.state[:25, 0, -1], np.arange(25) / 25, rtol=1e-6)


def test_agents_are_interchangeable():
    """Agents in another order, same landmarks: the same reward, and the agents' own features in that order."""
    position, velocity, landmark, action = (jnp.asarray(x[1], jnp.float32) for x in random_worlds(2, seed=3))
    order = jnp.array([2, 0, 1])
    time = jnp.zeros(1)

    def after(order):
        parts = [position[order].reshape(-1), velocity[order].reshape(-1), landmark.reshape(-1), time]
        return ENV.step(ENV.set_state(jnp.concatenate(parts)), action[order])

    here, permuted = after(jnp.arange(3)), after(order)
    np.testing.assert_allclose(here.reward, permuted.reward, rtol=1e-5)
    np.testing.assert_allclose(here.obs[order][:, :10], permuted.obs[:, :10], atol=1e-6)
