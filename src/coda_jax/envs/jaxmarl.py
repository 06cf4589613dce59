"""JaxMARL's environment interface: dicts of agents and automatic resets, for learners written for JaxMARL."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from coda_jax.envs.base import Environment, EnvState
from coda_jax.types import PRNGKey

ByAgent = dict[str, Array]


class JaxMarlEnv:
    """Wraps one environment; batch its `reset` and `step` with `jax.vmap` over keys, states and actions."""

    def __init__(self, env: Environment):
        self.env = env
        self.agents = [f"agent_{k}" for k in range(env.spec.num_agents)]
        self.num_agents = env.spec.num_agents

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
        stepped = self.env.step(state, jnp.stack([actions[agent] for agent in self.agents]))
        done = stepped.terminal | stepped.truncated
        fresh = self.env.reset(key)
        following = jax.tree.map(lambda a, b: jnp.where(done, a, b), fresh, stepped)
        info = {
            "last_obs": self._split(stepped.obs),
            "world_state": stepped.state,
            "terminal": stepped.terminal,
            "truncated": stepped.truncated,
        }
        rewards = dict.fromkeys(self.agents, stepped.reward)
        return self._split(following.obs), following, rewards, dict.fromkeys([*self.agents, "__all__"], done), info

    def _split(self, values: Array) -> ByAgent:
        return dict(zip(self.agents, values, strict=True))
