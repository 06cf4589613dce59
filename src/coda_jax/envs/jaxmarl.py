"""JaxMARL's environment interface: dicts of agents, spaces and automatic resets, for learners written for JaxMARL."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from coda_jax.envs.base import Environment, EnvState
from coda_jax.types import PRNGKey

ByAgent = dict[str, Array]


class Box(NamedTuple):
    """The space of float32 vectors with equal bounds for all entries, with the fields of JaxMARL's own."""

    low: float
    high: float
    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    def sample(self, key: PRNGKey) -> Array:
        """A uniform draw, which needs finite bounds; the key is consumed."""
        return jax.random.uniform(key, self.shape, self.dtype, minval=self.low, maxval=self.high)

    def contains(self, x: Array) -> Bool[Array, ""]:
        """Whether all entries are within the bounds."""
        return jnp.all((x >= self.low) & (x <= self.high))


class JaxMarlEnv:
    """Wraps one environment; batch its `reset` and `step` with `jax.vmap` over keys, states and actions."""

    def __init__(self, env: Environment):
        self.env = env
        self.name = env.spec.name
        self.agents = [f"agent_{k}" for k in range(env.spec.num_agents)]
        self.num_agents = env.spec.num_agents
        self.observation_spaces = dict.fromkeys(self.agents, Box(-jnp.inf, jnp.inf, (env.spec.obs_dim,)))
        self.action_spaces = dict.fromkeys(self.agents, Box(-1.0, 1.0, (env.spec.action_dim,)))

    def observation_space(self, agent: str) -> Box:
        """The space of an agent's observations."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Box:
        """The space of an agent's actions."""
        return self.action_spaces[agent]

    def get_obs(self, state: EnvState) -> ByAgent:
        """The observations in a state."""
        return self._split(state.obs)

    def reset(self, key: PRNGKey) -> tuple[ByAgent, EnvState]:
        """Draws an initial state; the key is consumed."""
        state = self.env.reset(key)
        return self._split(state.obs), state

    def step(
        self, key: PRNGKey, state: EnvState, actions: ByAgent
    ) -> tuple[ByAgent, EnvState, ByAgent, ByAgent, dict[str, Any]]:
        """Steps the environment and resets it at the end of an episode, with the key (consumed).

        Returns:
            Observations, state, rewards, dones (with `__all__`), and info. The observations and the state are those
            after the reset, if there was one. `info` has the observations (`last_obs`) and the global state
            (`world_state`) before the reset, and the flags `terminal` and `truncated`.
        """
        key_step, key_reset = jax.random.split(key)
        _, stepped, rewards, done, info = self.step_env(key_step, state, actions)
        fresh = self.env.reset(key_reset)
        following = jax.tree.map(lambda a, b: jnp.where(done["__all__"], a, b), fresh, stepped)
        return self.get_obs(following), following, rewards, done, info

    def step_env(
        self, key: PRNGKey, state: EnvState, actions: ByAgent
    ) -> tuple[ByAgent, EnvState, ByAgent, ByAgent, dict[str, Any]]:
        """Steps the environment without a reset; returns the same as `step`. The dynamics do not use the key."""
        del key
        stepped = self.env.step(state, jnp.stack([actions[agent] for agent in self.agents]))
        done = stepped.terminal | stepped.truncated
        obs = self.get_obs(stepped)
        info = {
            "last_obs": obs,
            "world_state": stepped.state,
            "terminal": stepped.terminal,
            "truncated": stepped.truncated,
        }
        rewards = dict.fromkeys(self.agents, stepped.reward)
        return obs, stepped, rewards, dict.fromkeys([*self.agents, "__all__"], done), info

    def _split(self, values: Array) -> ByAgent:
        return dict(zip(self.agents, values, strict=True))
