"""A task of your own without physics: two agents on a line that earn most on the same side of it."""

import jax
import jax.numpy as jnp

import coda_jax as cj

SPEC = cj.TaskSpec(name="same-side", num_agents=2, state_dim=2, obs_dim=1, action_dim=1, episode_length=10)


def observe(position, reward, time):
    ended = time >= SPEC.episode_length
    return cj.EnvState(
        state=position, obs=position[:, None], reward=reward, terminal=jnp.array(False), truncated=ended, time=time
    )


def set_state(position):
    return observe(position, jnp.zeros(()), jnp.int32(0))


def step(current, action):
    position = current.state + 0.25 * action[:, 0]
    return observe(position, jnp.prod(jnp.tanh(3.0 * position)), current.time + 1)


env = cj.Environment(lambda key: set_state(0.1 * jax.random.normal(key, (2,))), step, set_state, SPEC)
together = cj.episode_returns(env, lambda obs, carry, key: (jnp.ones((4, 2, 1)), carry), (), jax.random.key(0), 4)
print(f"both agents to the right: return {together.mean():.2f} of at most {SPEC.episode_length}")
