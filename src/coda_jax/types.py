"""Types that are shared across the package.

The dimension letters in the shape descriptions of the package:

    *batch  any leading axes (seeds, trajectories)      A  agents
    B       trajectories in a batch                     O  features of one agent's observation
    H       horizon: tokens in a window                 U  actions of one agent
    T       environment steps of a whole dataset        S  features of the global state
    C       channels of a packed token: C = S + A*O + A*U + 2
"""

import dataclasses
from typing import Any

import chex
import jax
from jaxtyping import Array, Float

from coda_jax.ranges import Count, NonNegativeCount, Ranged

PRNGKey = jax.Array
"""A typed key, as made by `jax.random.key`."""

Params = Any
"""A pytree of network weights."""

Metrics = dict[str, Float[Array, "*batch"]]
"""Named scalars; with a seed axis, one value per seed."""


@chex.dataclass(frozen=True)
class Trajectory:
    """A window of joint experience, or a batch of them.

    state:    `[*batch, H, S]` global state s_t, in the environment's units.
    obs:      `[*batch, H, A, O]` local observations o_t^i.
    action:   `[*batch, H, A, U]` actions a_t^i in [-1, 1].
    reward:   `[*batch, H]` team reward r_t received after acting at t.
    terminal: `[*batch, H]` 1.0 where the episode truly ended after t (a time limit is not an end).

    Examples:
        >>> window = cj.Trajectory(
        ...     state=jnp.zeros((20, 17)), obs=jnp.zeros((20, 2, 12)), action=jnp.zeros((20, 2, 3)),
        ...     reward=jnp.zeros(20), terminal=jnp.zeros(20),
        ... )
        >>> jax.tree.map(jnp.shape, window.replace(reward=jnp.ones(20))).action
        (20, 2, 3)
    """

    state: Float[Array, "*batch H S"]
    obs: Float[Array, "*batch H A O"]
    action: Float[Array, "*batch H A U"]
    reward: Float[Array, "*batch H"]
    terminal: Float[Array, "*batch H"]


@dataclasses.dataclass(frozen=True)
class TaskSpec(Ranged):
    """The sizes of a task; static, hashable.

    Examples:
        >>> cj.TaskSpec(name="mine", num_agents=2, state_dim=4, obs_dim=2, action_dim=1, episode_length=100).num_agents
        2
    """

    name: str
    """Name of the task, such as `2halfcheetah`."""
    num_agents: Count
    """A, the number of agents."""
    state_dim: NonNegativeCount
    """S, the number of features of the global state."""
    obs_dim: NonNegativeCount
    """O, the number of features of one agent's observation."""
    action_dim: Count
    """U, the number of actions of one agent."""
    episode_length: Count
    """Time limit: the number of steps after which an episode is truncated."""
