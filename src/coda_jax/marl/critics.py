"""Twin critics: one value of the joint action (MADDPG), or one value of each agent's own action (independent DDPG)."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.marl.networks import TwinCritic
from coda_jax.types import Params, PRNGKey, TaskSpec

Teammates = Literal["data", "current"]
"""The actions beside an agent's own in its Q term: those of the data (Eq. 6) or the current policies'."""


class Critics(NamedTuple):
    """Twin critics as functions of their parameters; `V` is 1 for critics of joint actions, A for independent ones.

    init:      `key -> params`. The key is consumed.
    of_joint:  `(params, state [*tokens, S], joint_action [*tokens, A, U]) -> [2, *tokens, V]`, the values of joint
               actions; axes of size one in `state` are broadcast.
    of_agents: `(params, state [*tokens, S], mu [*tokens, A, U], action [*tokens, A, U]) -> [2, *tokens, A]`, the value
               that each agent's policy ascends; its gradient reaches agent i's value through mu^i alone.
    """

    init: Callable[[PRNGKey], Params]
    of_joint: Callable[[Params, Float[Array, "*states S"], Float[Array, "*tokens A U"]], Float[Array, "2 *tokens V"]]
    of_agents: Callable[
        [Params, Float[Array, "*tokens S"], Float[Array, "*tokens A U"], Float[Array, "*tokens A U"]],
        Float[Array, "2 *tokens A"],
    ]


def brud_joint_actions(
    mu: Float[Array, "*batch A U"], action: Float[Array, "*batch A U"]
) -> Float[Array, "*batch A A U"]:
    """Eq. 6: for each agent i, on the first of the two agent axes, mu^i with the others' actions from the data."""
    num_agents = mu.shape[-2]
    own = jnp.eye(num_agents, dtype=bool).reshape(*[1] * (mu.ndim - 2), num_agents, num_agents, 1)
    return jnp.where(own, mu[..., None, :, :], action[..., None, :, :])


def actor_joint_actions(
    mu: Float[Array, "*batch A U"], action: Float[Array, "*batch A U"], teammates: Teammates
) -> Float[Array, "*batch A A U"]:
    """The joint action in each agent's Q term, which is differentiated by the agent's own action only.

    With `current` teammates all joint actions equal mu, and the sum of the agents' gradients is that of Q(s, mu).
    """
    return brud_joint_actions(mu, action if teammates == "data" else jax.lax.stop_gradient(mu))


def centralised_critics(
    task: TaskSpec, widths: tuple[int, ...], layer_norm: bool, teammates: Teammates = "data"
) -> Critics:
    """MADDPG's critics: Q(s, a) of the global state and the joint action."""
    twins = TwinCritic(widths, layer_norm)
    apply: Callable[..., Any] = twins.apply  # flax types it for the case that variables are mutated too

    def init(key: PRNGKey) -> Params:
        return twins.init(key, jnp.zeros(task.state_dim), jnp.zeros((task.num_agents, task.action_dim)))

    def of_joint(params: Params, state: Array, joint_action: Array) -> Array:
        return apply(params, state, joint_action)[..., None]

    def of_agents(params: Params, state: Array, mu: Array, action: Array) -> Array:
        return apply(params, state[..., None, :], actor_joint_actions(mu, action, teammates))

    return Critics(init, of_joint, of_agents)


def independent_critics(task: TaskSpec, widths: tuple[int, ...], layer_norm: bool) -> Critics:
    """Critics Q^i(s, a^i) of the global state and one agent's own action, one network conditioned on agent ids.

    They are those of OG-MARL's IDDPG+BC; the teammates are part of the environment.
    """
    twins = TwinCritic(widths, layer_norm)
    apply: Callable[..., Any] = twins.apply

    def init(key: PRNGKey) -> Params:
        return twins.init(key, jnp.zeros(task.num_agents + task.state_dim), jnp.zeros((1, task.action_dim)))

    def of_joint(params: Params, state: Array, joint_action: Array) -> Array:
        shape = (*state.shape[:-1], task.num_agents)
        agent_id = jnp.broadcast_to(jnp.eye(task.num_agents, dtype=state.dtype), (*shape, task.num_agents))
        states = jnp.broadcast_to(state[..., None, :], (*shape, task.state_dim))
        return apply(params, jnp.concatenate([agent_id, states], axis=-1), joint_action[..., None, :])

    def of_agents(params: Params, state: Array, mu: Array, action: Array) -> Array:
        del action
        return of_joint(params, state, mu)

    return Critics(init, of_joint, of_agents)
