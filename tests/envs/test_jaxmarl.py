"""JaxMARL's interface around the clock environment: terminal at multiples of 7, truncated after 5 steps."""

import jax
import jax.numpy as jnp
import numpy as np

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
