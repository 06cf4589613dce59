"""IDDPG+BC on games whose independent solution is known, and against MADDPG+BC where the two must agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coda_jax.marl.critics import independent_critics
from coda_jax.marl.iddpg_bc import IddpgBcConfig, iddpg_bc
from coda_jax.marl.input_scale import raw_inputs
from coda_jax.marl.learner import uniform_weights, unroll
from coda_jax.types import TaskSpec, Trajectory
from tests.marl.one_step_games import GAME, game_windows, train

CONFIG = IddpgBcConfig(
    critic_learning_rate=3e-3,
    policy_learning_rate=3e-3,
    policy_linear_width=8,
    policy_hidden_width=8,
    critic_widths=(32, 32),
)


def values(state, actions):
    """Both critics' values `[2, N, 2]` of own actions `[N, 2]` of the two agents."""
    critics = independent_critics(GAME, CONFIG.critic_widths, CONFIG.critic_layer_norm)
    return np.asarray(
        jax.jit(critics.of_joint)(state.critics, jnp.zeros((len(actions), 1)), jnp.asarray(actions)[..., None])
    )


def test_critics_learn_the_reward_averaged_over_the_teammates_in_the_data():
    """R = x y + x: E[r | x] = x (1 + m_y), E[r | y] = m_x (1 + y).

    Policies ascend these lines to the data's ends or beyond.
    """
    rng = np.random.default_rng(0)
    half = rng.uniform(-0.5, 0.5, (64, 1, 2))
    mean = np.array([-0.4, 0.3])
    action = mean + np.concatenate([half, -half, half * [1, -1], half * [-1, 1]])  # uncorrelated by symmetry
    reward = action[..., 0] * action[..., 1] + action[..., 0]
    learner = iddpg_bc(GAME, dataclasses.replace(CONFIG, alpha_bc=20.0), raw_inputs(GAME))
    state, metrics = train(learner, 0, game_windows(action, reward=reward), 600)
    assert all(np.all(np.isfinite(value)) for value in metrics.values())

    probe = (mean + rng.uniform(-0.4, 0.4, (50, 2))).astype(np.float32)
    expected = np.stack([probe[:, 0] * (1 + mean[1]), mean[0] * (1 + probe[:, 1])], axis=-1)
    for q in values(state, probe):
        np.testing.assert_allclose(q, expected, atol=0.06)
    mu = unroll(learner, state, jnp.zeros((1, 2, 1)))[0, :, 0]
    assert mu[0] > 0.0 and mu[1] < -0.1  # data end at 0.1 and -0.2


def test_pure_cloning_reaches_the_mean_of_the_data():
    rng = np.random.default_rng(1)
    half = rng.uniform(-0.4, 0.4, (32, 1, 2))
    action = np.array([0.5, -0.3]) + np.concatenate([half, -half])
    learner = iddpg_bc(GAME, dataclasses.replace(CONFIG, alpha_bc=0.0, policy_learning_rate=1e-2), raw_inputs(GAME))
    state, _ = train(learner, 0, game_windows(action), 300)
    np.testing.assert_allclose(unroll(learner, state, jnp.zeros((1, 2, 1)))[0, :, 0], [0.5, -0.3], atol=0.02)


def test_an_agents_value_knows_its_own_action_alone():
    task = TaskSpec(name="toy", num_agents=3, state_dim=2, obs_dim=1, action_dim=2, episode_length=1)
    critics = independent_critics(task, (8,), True)
    params = jax.jit(critics.init)(jax.random.key(0))
    joint, state = jax.random.normal(jax.random.key(1), (3, 2)), jnp.ones(2)
    jacobian = np.abs(jax.jacobian(lambda a: critics.of_joint(params, state, a)[0])(joint)).sum(axis=-1)
    assert np.all(np.diag(jacobian) > 1e-4)
    np.testing.assert_array_equal(jacobian - np.diag(np.diag(jacobian)), 0)


@settings(max_examples=2)
@given(num_agents=st.integers(1, 3), batch=st.integers(1, 3), horizon=st.integers(1, 3))
def test_any_sizes(num_agents, batch, horizon):
    task = TaskSpec(name="toy", num_agents=num_agents, state_dim=2, obs_dim=3, action_dim=2, episode_length=5)
    learner = iddpg_bc(task, dataclasses.replace(CONFIG, critic_widths=(4,)), raw_inputs(task))
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
