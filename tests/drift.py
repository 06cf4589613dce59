"""A world without physics for tests of what surrounds it: actions push the state, and are the reward."""

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx

from coda_jax.envs.mamujoco import Environment, EnvState
from coda_jax.types import TaskSpec

SPEC = TaskSpec(name="drift", num_agents=2, state_dim=2, obs_dim=1, action_dim=1, episode_length=5)


def _show(state, reward, time) -> EnvState:
    return EnvState(
        state=state,
        obs=state[:, None],
        reward=reward,
        terminal=jnp.zeros((), bool),
        truncated=time >= SPEC.episode_length,
        time=time,
        physics=mjx.make_data(mujoco.MjModel.from_xml_string("<mujoco/>")),
    )


def _reset(key) -> EnvState:
    return _show(jax.random.normal(key, (2,)), jnp.zeros(()), jnp.zeros((), jnp.int32))


def _step(now: EnvState, action) -> EnvState:
    return _show(now.state + 0.1 * action[:, 0], jnp.sum(action), now.time + 1)


DRIFT = Environment(reset=_reset, step=_step, spec=SPEC)
