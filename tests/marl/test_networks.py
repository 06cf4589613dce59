import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from coda_jax.marl.networks import Critic, RecurrentPolicy, TwinCritic

HORIZON, AGENTS, OBS, ACTION, LINEAR, HIDDEN = 6, 3, 4, 2, 5, 7
POLICY = RecurrentPolicy(LINEAR, HIDDEN, ACTION)


def no_memory(*batch_shape):
    return jnp.zeros((*batch_shape, AGENTS, HIDDEN))


# Compiled as one program each: operation by operation, a network is a hundred programs.
def initial(module, *inputs, seed=0):
    return jax.jit(module.init)(jax.random.key(seed), *inputs)


def values(module, params, *inputs):
    return np.asarray(jax.jit(module.apply)(params, *inputs))


@pytest.fixture(scope="module")
def policy_params():
    """Parameters with all entries, biases too, away from their initial values."""

    @jax.jit
    def draw(key):
        key_init, key_noise = jax.random.split(key)
        flat, unflatten = ravel_pytree(POLICY.init(key_init, jnp.zeros((1, AGENTS, OBS)), no_memory()))
        return unflatten(flat + 0.5 * jax.random.normal(key_noise, flat.shape))

    return draw(jax.random.key(0))


@jax.jit
def act(params, obs, carry):
    return POLICY.apply(params, obs, carry)[0]


def observations(*shape):
    return jax.random.normal(jax.random.key(1), (*shape, AGENTS, OBS))


def textbook_policy(params, obs):
    """Linear - relu - GRU - relu - Linear - tanh, step by step and agent by agent, in float64 NumPy."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    gru = p["ScanGRUCell_0"]
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    action = np.zeros((*obs.shape[:-1], ACTION))
    for agent in range(AGENTS):
        h = np.zeros(HIDDEN)
        for t in range(obs.shape[0]):
            x = np.concatenate([np.eye(AGENTS)[agent], obs[t, agent]])
            x = np.maximum(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], 0)
            r = sigmoid(x @ gru["ir"]["kernel"] + gru["ir"]["bias"] + h @ gru["hr"]["kernel"])
            z = sigmoid(x @ gru["iz"]["kernel"] + gru["iz"]["bias"] + h @ gru["hz"]["kernel"])
            memory = h @ gru["hn"]["kernel"] + gru["hn"]["bias"]
            n = np.tanh(x @ gru["in"]["kernel"] + gru["in"]["bias"] + r * memory)
            h = (1 - z) * n + z * h
            action[t, agent] = np.tanh(np.maximum(h, 0) @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"])
    return action


def test_policy_is_the_textbook_network(policy_params):
    obs = observations(HORIZON)
    action = act(policy_params, obs, no_memory())
    np.testing.assert_allclose(action, textbook_policy(policy_params, np.asarray(obs)), atol=2e-6)


def test_two_halves_of_a_window_need_the_hidden_state(policy_params):
    obs, cut = observations(HORIZON), HORIZON // 2
    apply = jax.jit(POLICY.apply)
    whole, last = apply(policy_params, obs, no_memory())
    first, carry = apply(policy_params, obs[:cut], no_memory())
    second, end = apply(policy_params, obs[cut:], carry)
    np.testing.assert_allclose(jnp.concatenate([first, second]), whole, atol=1e-6)
    np.testing.assert_allclose(end, last, atol=1e-6)
    forgetful, _ = apply(policy_params, obs[cut:], no_memory())
    assert np.abs(forgetful - whole[cut:]).max() > 1e-2


def test_policy_treats_windows_and_agents_independently(policy_params):
    obs = observations(HORIZON, 2, 3)
    action = act(policy_params, obs, no_memory(2, 3))
    for i, j in np.ndindex(2, 3):
        np.testing.assert_allclose(action[:, i, j], act(policy_params, obs[:, i, j], no_memory()), atol=1e-6)
    changed = act(policy_params, obs.at[..., 0, :].add(1.0), no_memory(2, 3))
    np.testing.assert_array_equal(changed[..., 1:, :], action[..., 1:, :])
    assert np.abs(changed[..., 0, :] - action[..., 0, :]).max() > 1e-3


def test_agents_differ_only_by_their_id(policy_params):
    obs = jnp.broadcast_to(observations(HORIZON)[:, :1], (HORIZON, AGENTS, OBS))
    action = act(policy_params, obs, no_memory())
    assert np.abs(action[:, 0] - action[:, 1]).max() > 1e-2
    kernel = policy_params["params"]["Dense_0"]["kernel"].at[:AGENTS].set(0.0)  # one-hot agent id first
    params = policy_params["params"]
    blind = {"params": {**params, "Dense_0": {**params["Dense_0"], "kernel": kernel}}}
    action = act(blind, obs, no_memory())
    np.testing.assert_allclose(action[:, 0], action[:, 1], atol=1e-6)


CRITIC_INPUT = (
    np.asarray(jax.random.normal(jax.random.key(2), (5, 4))),
    np.asarray(jax.random.normal(jax.random.key(3), (5, AGENTS, ACTION))),
)


def test_critic_is_the_textbook_network():
    state, joint_action = CRITIC_INPUT
    critic = Critic((8, 6))
    params = initial(critic, state, joint_action)
    p = params["params"]
    x = np.concatenate([state, np.asarray(joint_action).reshape(5, AGENTS * ACTION)], axis=-1)
    for layer in ("Dense_0", "Dense_1"):
        x = np.maximum(x @ np.asarray(p[layer]["kernel"]) + np.asarray(p[layer]["bias"]), 0)
    q = (x @ np.asarray(p["Dense_2"]["kernel"]) + np.asarray(p["Dense_2"]["bias"]))[:, 0]
    np.testing.assert_allclose(values(critic, params, state, joint_action), q, atol=1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_layer_norm_bounds_the_values_of_far_actions(layer_norm):
    state, joint_action = CRITIC_INPUT
    critic = Critic((8, 6), layer_norm)
    params = initial(critic, state, joint_action)
    near, far = (values(critic, params, state, scale * joint_action) for scale in (1e3, 1e5))
    growth = np.abs(far).max() / np.abs(near).max()
    assert growth < 1.05 if layer_norm else growth > 50


def test_twin_critics_start_different_and_never_mix():
    twins, one = TwinCritic((8, 6)), Critic((8, 6))
    params = initial(twins, *CRITIC_INPUT)
    q = values(twins, params, *CRITIC_INPUT)
    assert q.shape == (2, 5)
    assert np.abs(q[0] - q[1]).max() > 1e-2
    for k in range(2):
        alone = jax.tree.map(lambda x, k=k: x[k], params["params"]["VmapCritic_0"])
        np.testing.assert_allclose(q[k], values(one, {"params": alone}, *CRITIC_INPUT), atol=1e-5)
    gradient = jax.jit(jax.grad(lambda *a: jnp.sum(twins.apply(*a)[0])))(params, *CRITIC_INPUT)
    assert all(np.all(x[1] == 0) and np.any(x[0] != 0) for x in jax.tree.leaves(gradient))


class ScannedPolicy(nn.Module):
    """The policy with flax's cell in flax's scan; recorded checkpoints have its parameters."""

    @nn.compact
    def __call__(self, obs, carry):
        agent_id = jnp.broadcast_to(jnp.eye(AGENTS), (*obs.shape[:-1], AGENTS))
        x = nn.relu(nn.Dense(LINEAR)(jnp.concatenate([agent_id, obs], axis=-1)))
        gru = nn.scan(nn.GRUCell, variable_broadcast="params", split_rngs={"params": False})
        carry, x = gru(HIDDEN, recurrent_kernel_init=nn.initializers.lecun_normal())(carry, x)
        return nn.tanh(nn.Dense(ACTION)(nn.relu(x))), carry


class PlainCritic(nn.Module):
    """One critic of flax's layers alone."""

    layer_norm: bool

    @nn.compact
    def __call__(self, state, joint_action):
        x = jnp.concatenate([state, joint_action.reshape(*joint_action.shape[:-2], -1)], axis=-1)
        for width in (8, 6):
            x = nn.Dense(width)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.layer_norm else x)
        return jnp.squeeze(nn.Dense(1)(x), axis=-1)


def assert_same_network(ours, plain, *inputs):
    """Same initial parameters, bit for bit, and same values and gradients up to rounding."""
    params, expected = (initial(m, *inputs, seed=4) for m in (ours, plain))
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)

    def loss(module, params, *inputs):
        return sum(jnp.sum(jnp.sin(3.0 * leaf)) for leaf in jax.tree.leaves(module.apply(params, *inputs)))

    argnums = tuple(range(1 + len(inputs)))
    one, other = (
        jax.jit(jax.value_and_grad(lambda *a, m=m: loss(m, *a), argnums))(params, *inputs) for m in (ours, plain)
    )
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=5e-5)


def test_policy_is_the_scanned_cell_with_its_parameters():
    assert_same_network(POLICY, ScannedPolicy(), observations(HORIZON, 2), 0.3 + no_memory(2))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_critic_is_the_plain_network_with_its_parameters(layer_norm):
    assert_same_network(Critic((8, 6), layer_norm), PlainCritic(layer_norm), *CRITIC_INPUT)


def test_many_actions_in_one_state_have_the_values_they_have_alone():
    state, joint_action = CRITIC_INPUT
    twins = TwinCritic((8, 6), layer_norm=True)
    params = initial(twins, state, joint_action)
    actions = np.stack([joint_action, -joint_action, 0.5 * joint_action], axis=1)
    together = values(twins, params, state[:, None], actions)
    assert together.shape == (2, 5, 3)
    for k in range(3):
        np.testing.assert_allclose(together[:, :, k], values(twins, params, state, actions[:, k]), atol=1e-5)


def test_a_critic_without_state_values_actions_alone():
    joint_action = CRITIC_INPUT[1]
    critic = Critic((8, 6))
    params = initial(critic, jnp.zeros((5, 0)), joint_action)
    value = values(critic, params, jnp.zeros((5, 0)), joint_action)
    assert value.shape == (5,) and np.ptp(value) > 1e-3
