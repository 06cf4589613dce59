"""The interface of JaxMARL, for learners that are written against it: agents in dicts, and automatic resets."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from coda_jax.envs.base import Environment, EnvState
from coda_jax.types import PRNGKey

ByAgent = dict[str, Array]


class JaxMarlEnv:
    """Wraps one environment; `jax.vmap` its `reset` and `step` over keys, states and actions."""

    def __init__(self, env: Environment):
        self.env = env
        self.agents = [f"agent_{k}" for k in range(env.spec.num_agents)]
        self.num_agents = env.spec.num_agents

    def reset(self, key: PRNGKey) -> tuple[ByAgent, EnvState]:
        """Draws a start; the key is consumed."""
        now = self.env.reset(key)
        return self._split(now.obs), now

    def step(
        self, key: PRNGKey, state: EnvState, actions: ByAgent
    ) -> tuple[ByAgent, EnvState, ByAgent, ByAgent, dict[str, Any]]:
        """Steps, and where the episode ends, starts the next one from the key (consumed).

        Returns:
            observations, state, rewards, dones (with `__all__`), and info: the last observations of the episode, the
            global state, and whether the task ended or the time limit did.
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
