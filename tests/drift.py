"""An environment without physics: actions are added to the state, and their sum is the reward.

Also episodes of noise with the sizes of any task.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from coda_jax.data.dataset import Episodes, episodes_from_arrays
from coda_jax.envs.base import Environment, EnvState
from coda_jax.types import TaskSpec

SPEC = TaskSpec(name="drift", num_agents=2, state_dim=2, obs_dim=1, action_dim=1, episode_length=5)


def _env_state(state, reward, time) -> EnvState:
    return EnvState(
        state=state,
        obs=state[:, None],
        reward=reward,
        terminal=jnp.zeros((), bool),
        truncated=time >= SPEC.episode_length,
        time=time,
    )


def _set_state(state) -> EnvState:
    return _env_state(state, jnp.zeros(()), jnp.zeros((), jnp.int32))


def _reset(key) -> EnvState:
    return _set_state(jax.random.normal(key, (2,)))


def _step(current: EnvState, action) -> EnvState:
    return _env_state(current.state + 0.1 * action[:, 0], jnp.sum(action), current.time + 1)


DRIFT = Environment(reset=_reset, step=_step, set_state=_set_state, spec=SPEC)


def noise_episodes(spec: TaskSpec, num_episodes: int, length: int) -> Episodes:
    """Episodes of independent random steps, truncated after `length` steps."""
    rng, steps = np.random.default_rng(0), num_episodes * length
    return episodes_from_arrays(
        state=rng.normal(size=(steps, spec.state_dim)),
        obs=rng.normal(size=(steps, spec.num_agents, spec.obs_dim)),
        action=rng.uniform(-1, 1, size=(steps, spec.num_agents, spec.action_dim)),
        reward=rng.normal(size=steps),
        terminal=np.zeros(steps),
        truncation=np.arange(steps) % length == length - 1,
    )


def drift_episodes(num_episodes: int) -> Episodes:
    """Episodes of random actions in this environment, up to the time limit."""
    rng, length = np.random.default_rng(0), SPEC.episode_length
    action = rng.uniform(-1, 1, size=(num_episodes, length, SPEC.num_agents, SPEC.action_dim)).astype(np.float32)
    start = rng.normal(size=(num_episodes, 1, SPEC.state_dim))
    displacement = np.cumsum(0.1 * action[..., 0], axis=1) - 0.1 * action[..., 0]
    state = (start + displacement).reshape(-1, SPEC.state_dim)
    flat = action.reshape(-1, *action.shape[2:])
    return episodes_from_arrays(
        state=state,
        obs=state[..., None],
        action=flat,
        reward=flat.sum(axis=(1, 2)),
        terminal=np.zeros(len(flat)),
        truncation=np.arange(len(flat)) % length == length - 1,
    )


FALL = 1.0
"""Where the first entry of the state ends an episode of `FALLING_DRIFT`."""


def _falling_reset(key) -> EnvState:
    return _set_state(0.01 * jax.random.normal(key, (2,)))


def _falling_step(current: EnvState, action) -> EnvState:
    stepped = _step(current, action)
    return dataclasses.replace(stepped, terminal=stepped.state[0] > FALL)


FALLING_DRIFT = Environment(
    reset=_falling_reset,
    step=_falling_step,
    set_state=_set_state,
    spec=dataclasses.replace(SPEC, episode_length=40),
)
"""The same with starts near the origin, 40 steps, and a fall where the first entry of the state is above `FALL`."""


def falling_episodes(falls: str, seed: int = 0) -> Episodes:
    """Episodes of `FALLING_DRIFT`: `f` for one that falls after some 14 steps, `l` for one that reaches the limit."""
    rng = np.random.default_rng(seed)
    states, actions, terminals, truncations = [], [], [], []
    for kind in falls:
        state, is_over, time = 0.01 * rng.normal(size=2), False, 0
        while not is_over:
            action = rng.uniform(0.5, 1.0, 2) * (1.0 if kind == "f" else 0.3)
            states.append(state)
            actions.append(action)
            state, time = state + 0.1 * action, time + 1
            terminals.append(state[0] > FALL)
            truncations.append(time == FALLING_DRIFT.spec.episode_length and not terminals[-1])
            is_over = terminals[-1] or truncations[-1]
    action, state = np.array(actions, np.float32)[..., None], np.array(states, np.float32)
    return episodes_from_arrays(
        state=state,
        obs=state[..., None],
        action=action,
        reward=action.sum(axis=(1, 2)),
        terminal=np.array(terminals),
        truncation=np.array(truncations),
    )
