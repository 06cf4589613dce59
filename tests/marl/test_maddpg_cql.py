"""MADDPG+CQL: its penalty in closed form, and on a bandit whose conservative values are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coda_jax.marl.critics import centralised_critics
from coda_jax.marl.input_scale import raw_inputs
from coda_jax.marl.learner import RowWeights, uniform_weights, unroll
from coda_jax.marl.maddpg_cql import MaddpgCqlConfig, conservative_penalty, maddpg_cql, sample_joint_actions
from coda_jax.types import TaskSpec, Trajectory
from tests.marl.one_step_games import GAME, game_windows, train
from tests.marl.states import distance

CONFIG = MaddpgCqlConfig(
    critic_learning_rate=3e-3,
    policy_learning_rate=3e-3,
    policy_linear_width=8,
    policy_hidden_width=8,
    critic_widths=(32, 32),
)
BANDIT = TaskSpec(name="bandit", num_agents=1, state_dim=1, obs_dim=1, action_dim=1, episode_length=1)


def test_the_penalty_of_uniform_samples_is_the_log_integral_of_exp_q():
    """Q = c a on [-1, 1]: log of the integral 2 sinh(c) / c, plus log M, minus the data's value."""
    c, num = 1.7, 20_000
    sampled = jnp.linspace(-1.0, 1.0, num)
    q = jnp.broadcast_to(c * sampled[None], (2, num))
    penalty = conservative_penalty(q, jnp.full((num, 1), jnp.log(0.5)), jnp.asarray([0.3, 0.5]))
    np.testing.assert_allclose(penalty, np.log(2 * np.sinh(c) / c) + np.log(num) - 0.4, rtol=1e-5)


def test_the_penalty_weighs_samples_by_their_density():
    """The integral of exp(-a^2) over the line is sqrt(pi), from samples of a wider normal distribution."""
    sigma, num = 1.5, 100_000
    a = sigma * jax.random.normal(jax.random.key(0), (num,))
    log_density = -0.5 * (a / sigma) ** 2 - jnp.log(sigma * jnp.sqrt(2 * jnp.pi))
    q = jnp.broadcast_to(-(a**2)[None], (2, num))
    penalty = conservative_penalty(q, log_density[:, None], jnp.zeros(2))
    np.testing.assert_allclose(penalty - np.log(num), 0.5 * np.log(np.pi), atol=0.01)


def test_samples_come_from_the_three_sets_with_their_densities():
    config = dataclasses.replace(CONFIG, num_sampled_actions=4000, sample_noise=0.1)
    mu = jnp.asarray([[[[0.1, 0.2]]], [[[-0.3, 0.4]]]])  # two tokens of one agent with two actions
    sampled, log_density = sample_joint_actions(mu, config, jax.random.key(0))
    uniform, now, following = np.split(np.asarray(sampled)[:, 0, :, 0], 3, axis=1)
    np.testing.assert_allclose(uniform.mean(axis=1), 0.0, atol=0.05)
    np.testing.assert_allclose(uniform.std(axis=1), 1 / np.sqrt(3), atol=0.02)
    np.testing.assert_allclose(now.mean(axis=1), mu[:, 0, 0], atol=0.01)
    np.testing.assert_allclose(now.std(axis=1), 0.1, atol=0.005)
    np.testing.assert_allclose(following.mean(axis=1), mu[[1, 1], 0, 0], atol=0.01)
    of_uniform, of_now, of_following = np.split(np.asarray(log_density)[:, 0, :, 0], 3, axis=1)
    np.testing.assert_allclose(of_uniform, np.log(0.25), rtol=1e-6)
    for near, densities, centre in ((now, of_now, mu[:, 0, 0]), (following, of_following, mu[[1, 1], 0, 0])):
        error = (near - np.asarray(centre)[:, None]) / 0.1
        expected = -0.5 * (error**2).sum(axis=-1) - 2 * np.log(0.1 * np.sqrt(2 * np.pi))
        np.testing.assert_allclose(densities, expected, atol=1e-4)


def bandit_values(state, actions, config):
    critics = centralised_critics(BANDIT, config.critic_widths, config.critic_layer_norm)
    actions = jnp.asarray(actions, jnp.float32)[:, None, None]
    return np.asarray(jax.jit(critics.of_joint)(state.critics, jnp.zeros((actions.shape[0], 1)), actions))[..., 0]


@pytest.mark.slow
def test_on_a_bandit_values_of_unseen_actions_sink():
    """Data in [-1, 0] with reward 0; values to the right fall by the penalty alone."""
    action = np.linspace(-1.0, 0.0, 128)[:, None, None]
    window = game_windows(action, reward=np.zeros((128, 1)))
    seen, unseen = np.linspace(-0.9, -0.1, 9), np.linspace(0.4, 1.0, 7)
    gaps = []
    for weight in (0.0, 0.5):
        config = dataclasses.replace(CONFIG, cql_weight=weight)
        state, _ = train(maddpg_cql(BANDIT, config, raw_inputs(BANDIT)), 0, window, 300)
        gaps.append(bandit_values(state, seen, config).mean() - bandit_values(state, unseen, config).mean())
    assert gaps[0] < 0.5 < 1.5 < gaps[1]


def test_on_a_bandit_with_uniform_data_the_values_are_the_closed_form():
    """The minimiser of E[(Q - r)^2] / 2 + w (log of the integral of exp(Q) - E[Q]) for uniform data on [-1, 1].

    It solves Q(a) - r(a) + w (p(a) - 1) = 0 with p = exp(Q) / mean(exp(Q)), here for r = 2 a. All three sets estimate
    the same integral; the policy stays as it started, near 0.
    """
    w, grid = 0.5, np.linspace(-1.0, 1.0, 2001)
    q = 2.0 * grid
    for _ in range(2000):
        q = q + 0.1 * (2.0 * grid - q - w * (np.exp(q) / np.exp(q).mean() - 1))
    action = np.linspace(-1.0, 1.0, 64)[:, None, None]
    window = game_windows(action, reward=2.0 * action[..., 0])
    config = dataclasses.replace(CONFIG, cql_weight=w, num_sampled_actions=20, sample_noise=0.3)
    weights = RowWeights(critic=jnp.ones(64), actor=jnp.zeros(64), cloning=jnp.zeros(64))
    learner = maddpg_cql(BANDIT, config, raw_inputs(BANDIT))

    def step(state, key):
        return learner.update(state, window, weights, key)

    keys = jax.random.split(jax.random.key(1), 600)
    state, _ = jax.jit(lambda key, keys: jax.lax.scan(step, learner.init(key), keys))(jax.random.key(0), keys)
    probe = np.linspace(-0.7, 0.7, 8)
    for values in bandit_values(state, probe, config):
        np.testing.assert_allclose(values, np.interp(probe, grid, q), atol=0.15)


def test_the_policy_stays_where_the_data_are_and_rises_within_them():
    """Reward a_x + a_y on data in [-0.5, 0.5]^2: toward the upper end of the data."""
    rng = np.random.default_rng(0)
    action = rng.uniform(-0.5, 0.5, (64, 1, 2))
    learner = maddpg_cql(GAME, dataclasses.replace(CONFIG, cql_weight=1.0), raw_inputs(GAME))
    state, metrics = train(learner, 0, game_windows(action, reward=2.0 * action.sum(axis=-1)), 600)
    assert all(np.all(np.isfinite(value)) for value in metrics.values())
    mu = jax.jit(unroll, static_argnums=0)(learner, state, jnp.zeros((1, 2, 1)))[0, :, 0]
    assert np.all(mu > 0.1) and np.all(mu < 0.9)


def test_the_key_is_used_and_only_by_the_critics():
    learner = maddpg_cql(GAME, CONFIG, raw_inputs(GAME))
    window = game_windows(np.random.default_rng(0).uniform(-1, 1, (8, 2, 2)))
    state, update = learner.init(jax.random.key(0)), jax.jit(learner.update)
    (one, _), (same, _), (other, _) = (
        update(state, window, uniform_weights(8), jax.random.key(seed)) for seed in (1, 1, 2)
    )

    assert distance(one.critics, same.critics) == 0
    assert distance(one.critics, other.critics) > 0
    assert distance(one.policy, other.policy) == 0


def test_a_row_without_weight_has_no_influence():
    learner = maddpg_cql(GAME, CONFIG, raw_inputs(GAME))
    action = np.random.default_rng(0).uniform(-1, 1, (8, 2, 2))
    altered = action.copy()
    altered[3] = -altered[3]
    weight = jnp.ones(8).at[3].set(0.0)
    state, update = learner.init(jax.random.key(0)), jax.jit(learner.update)
    one, other = (
        update(state, game_windows(a), RowWeights(critic=weight, actor=weight, cloning=weight), jax.random.key(1))
        for a in (action, altered)
    )
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=2)
@given(num_agents=st.integers(1, 3), batch=st.integers(1, 3), horizon=st.integers(1, 3), layer_norm=st.booleans())
def test_any_sizes(num_agents, batch, horizon, layer_norm):
    task = TaskSpec(name="toy", num_agents=num_agents, state_dim=2, obs_dim=3, action_dim=2, episode_length=5)
    config = dataclasses.replace(CONFIG, critic_widths=(4,), critic_layer_norm=layer_norm, num_sampled_actions=2)
    learner = maddpg_cql(task, config, raw_inputs(task))
    state = learner.init(jax.random.key(0))
    window = Trajectory(
        state=jnp.ones((batch, horizon, 2)),
        obs=jnp.ones((batch, horizon, num_agents, 3)),
        action=jnp.zeros((batch, horizon, num_agents, 2)),
        reward=jnp.ones((batch, horizon)),
        terminal=jnp.zeros((batch, horizon)),
    )
    after, metrics = jax.jit(learner.update)(state, window, uniform_weights(batch), jax.random.key(1))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert all(np.isfinite(value) and value.shape == () for value in metrics.values())
