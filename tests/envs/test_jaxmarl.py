"""JaxMARL's interface around the clock environment: terminal at multiples of 7, truncated after 5 steps."""

import jax
import jax.numpy as jnp
import numpy as np

from coda_jax.envs.coordination import EPISODE_LENGTH, SameSide, same_side
from coda_jax.envs.jaxmarl import JaxMarlEnv
from tests.envs.test_rollout import CLOCK, clock_at


def test_agents_are_named_and_ended_episodes_are_reset():
    env = JaxMarlEnv(CLOCK)
    assert env.agents == ["agent_0", "agent_1"] and env.num_agents == 2
    obs, state = env.reset(jax.random.key(0))
    np.testing.assert_array_equal(obs["agent_1"], state.state)
    state = clock_at(jnp.float32(5.0), jnp.zeros(()), jnp.int32(2))
    actions = {"agent_0": jnp.array([0.25]), "agent_1": jnp.array([0.5])}
    obs, state, reward, done, info = env.step(jax.random.key(1), state, actions)
    assert (float(obs["agent_0"][0]), float(reward["agent_1"]), int(state.time)) == (6.0, 0.75 * 3, 3)
    assert not any(map(bool, done.values())) and set(done) == {"agent_0", "agent_1", "__all__"}
    obs, state, reward, done, info = env.step(jax.random.key(2), state, actions)
    assert all(map(bool, done.values())) and bool(info["terminal"]) and not bool(info["truncated"])
    assert float(info["last_obs"]["agent_0"][0]) == float(info["world_state"][0]) == 7.0
    assert int(state.time) == 0 and float(obs["agent_0"][0]) == float(state.state[0]) != 7.0


def test_a_step_without_reset_is_the_step_before_the_reset():
    env = JaxMarlEnv(CLOCK)
    state = clock_at(jnp.float32(6.0), jnp.zeros(()), jnp.int32(2))
    actions = {"agent_0": jnp.array([0.5]), "agent_1": jnp.array([0.5])}
    obs, ended, _, done, info = env.step_env(jax.random.key(0), state, actions)
    assert bool(done["__all__"]) and float(obs["agent_0"][0]) == float(ended.state[0]) == 7.0
    _, _, _, _, info_of_step = env.step(jax.random.key(1), state, actions)
    jax.tree.map(np.testing.assert_array_equal, info, info_of_step)
    jax.tree.map(np.testing.assert_array_equal, env.get_obs(ended), obs)


def test_spaces_hold_what_the_environment_takes_and_gives():
    env = JaxMarlEnv(same_side())
    assert env.name == "same-side"
    obs, _ = env.reset(jax.random.key(0))
    for agent in env.agents:
        assert env.observation_space(agent).shape == obs[agent].shape
        assert bool(env.observation_space(agent).contains(obs[agent]))
        action = env.action_space(agent).sample(jax.random.key(1))
        assert action.shape == (1,) and bool(env.action_space(agent).contains(action))
        assert not bool(env.action_space(agent).contains(jnp.array([1.5])))


def test_a_learner_loop_as_jaxmarl_s_own_raises_the_return():
    """Independent policy gradients: vmapped environments, a scan over steps, one linear Gaussian policy an agent."""
    env = JaxMarlEnv(same_side(SameSide(half_width=0.3)))
    num_envs, num_updates, std = 64, 60, 0.3
    sizes = {agent: (env.observation_space(agent).shape[0], env.action_space(agent).shape[0]) for agent in env.agents}
    params = {agent: {"w": jnp.zeros(shape), "b": jnp.full(shape[1], 0.1)} for agent, shape in sizes.items()}

    def roll_out(params, key):
        def step(carry, key):
            obs, state = carry
            key_step, *keys = jax.random.split(key, env.num_agents + 1)
            mean = {a: obs[a] @ params[a]["w"] + params[a]["b"][None] for a in env.agents}
            noise = {a: std * jax.random.normal(k, mean[a].shape) for a, k in zip(env.agents, keys, strict=True)}
            action = jax.tree.map(lambda m, n: jax.lax.stop_gradient(m + n), mean, noise)
            score = jax.tree.map(lambda m, a: -0.5 * jnp.sum(((a - m) / std) ** 2, axis=-1), mean, action)
            step_keys = jax.random.split(key_step, num_envs)
            obs, state, reward, _, _ = jax.vmap(env.step)(step_keys, state, action)
            return (obs, state), (score, reward)

        key_reset, key_steps = jax.random.split(key)
        start = jax.vmap(env.reset)(jax.random.split(key_reset, num_envs))
        return jax.lax.scan(step, start, jax.random.split(key_steps, EPISODE_LENGTH))[1]

    def loss(params, key):
        score, reward = roll_out(params, key)
        total = jnp.sum(reward[env.agents[0]], axis=0)
        advantage = (total - jnp.mean(total)) / (jnp.std(total) + 1e-6)
        return -sum(jnp.mean(jnp.sum(score[a], axis=0) * advantage) for a in env.agents), jnp.mean(total)

    @jax.jit
    def train(params, keys):
        def update(params, key):
            gradient, mean_return = jax.grad(loss, has_aux=True)(params, key)
            return jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient), mean_return

        return jax.lax.scan(update, params, keys)[1]

    returns = train(params, jax.random.split(jax.random.key(0), num_updates))
    assert jnp.mean(returns[-5:]) > jnp.mean(returns[:5]) + 2.0
