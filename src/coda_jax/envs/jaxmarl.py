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
        next_state = self.env.step(state, jnp.stack([actions[agent] for agent in self.agents]))
        done = next_state.terminal | next_state.truncated
        initial = self.env.reset(key)
        state_after_reset = jax.tree.map(lambda a, b: jnp.where(done, a, b), initial, next_state)
        info = {
            "last_obs": self._split(next_state.obs),
            "world_state": next_state.state,
            "terminal": next_state.terminal,
            "truncated": next_state.truncated,
        }
        rewards = dict.fromkeys(self.agents, next_state.reward)
        return (
            self._split(state_after_reset.obs),
            state_after_reset,
            rewards,
            dict.fromkeys([*self.agents, "__all__"], done),
            info,
        )

    def _split(self, values: Array) -> ByAgent:
        return dict(zip(self.agents, values, strict=True))
