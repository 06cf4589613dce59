"""Rollouts of a joint policy in a batch of environments, with automatic resets, and episode returns."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.envs.base import Environment, EnvState
from coda_jax.types import PRNGKey, Trajectory

PolicyCarry = Any
"""The policy's memory between steps, such as a GRU's hidden state: a pytree with a leading axis of environments."""

Act = Callable[[Float[Array, "N A O"], PolicyCarry, PRNGKey], tuple[Float[Array, "N A U"], PolicyCarry]]
"""A joint policy over N environments: observations, carry, key -> actions in [-1, 1], next carry."""


@chex.dataclass(frozen=True)
class Rollout:
    """Experience of N environments over T steps.

    steps:     `[T, N, ...]` joint experience; the horizon axis of `Trajectory` is T here, in front of N.
    truncated: `[T, N]` 1.0 where the time limit ended an episode after this step.
    """

    steps: Trajectory
    truncated: Float[Array, "*T N"]


def where_done(done: Array, if_done: Any, otherwise: Any) -> Any:
    """Selects between two pytrees per environment; `done` is `[N]`, leaves are `[N, ...]`."""

    def select(a: Array, b: Array) -> Array:
        return jnp.where(done.reshape(done.shape + (1,) * (b.ndim - 1)), a, b)

    return jax.tree.map(select, if_done, otherwise)


def step_and_reset(
    env: Environment, state: EnvState, action: Float[Array, "N A U"], key: PRNGKey
) -> tuple[EnvState, EnvState]:
    """Steps N environments; returns the states after the step without and with resets. The key is consumed."""
    stepped = jax.vmap(env.step)(state, action)
    initial = jax.vmap(env.reset)(jax.random.split(key, action.shape[0]))
    return stepped, where_done(stepped.terminal | stepped.truncated, initial, stepped)


def rollout(
    env: Environment, act: Act, initial_carry: PolicyCarry, key: PRNGKey, num_envs: int, num_steps: int
) -> Rollout:
    """Runs a joint policy for `num_steps` steps in `num_envs` environments.

    Args:
        env: the task.
        act: the joint policy.
        initial_carry: the policy's carry at the start of an episode, leaves `[N, ...]`; also used after every reset.
        key: consumed.
        num_envs: N.
        num_steps: T.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, environment
        >>> env = environment(MULTIPLICATION)
        >>> act = lambda obs, carry, key: (jnp.ones((4, 2, 1)), carry)
        >>> cj.rollout(env, act, (), jax.random.key(0), num_envs=4, num_steps=3).steps.reward.shape
        (3, 4)
    """
    key_start, key_steps = jax.random.split(key)

    def body(carry: tuple[EnvState, PolicyCarry], key: PRNGKey) -> tuple[tuple[EnvState, PolicyCarry], Rollout]:
        state, memory = carry
        key_act, key_reset = jax.random.split(key)
        action, memory = act(state.obs, memory, key_act)
        stepped, state_after_reset = step_and_reset(env, state, action, key_reset)
        memory = where_done(stepped.terminal | stepped.truncated, initial_carry, memory)
        steps = Trajectory(
            state=state.state,
            obs=state.obs,
            action=action,
            reward=stepped.reward,
            terminal=stepped.terminal.astype(jnp.float32),
        )
        return (state_after_reset, memory), Rollout(steps=steps, truncated=stepped.truncated.astype(jnp.float32))

    start = jax.vmap(env.reset)(jax.random.split(key_start, num_envs))
    _, recorded = jax.lax.scan(body, (start, initial_carry), jax.random.split(key_steps, num_steps))
    return recorded


def episode_returns(
    env: Environment, act: Act, initial_carry: PolicyCarry, key: PRNGKey, num_envs: int
) -> Float[Array, "N"]:
    """Undiscounted return of one whole episode in each of `num_envs` environments; the arguments are `rollout`'s.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, environment
        >>> env = environment(MULTIPLICATION)
        >>> act = lambda obs, carry, key: (jnp.ones((4, 2, 1)), carry)
        >>> cj.episode_returns(env, act, (), jax.random.key(0), num_envs=4).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    key_start, key_act = jax.random.split(key)

    def body(carry: tuple[EnvState, PolicyCarry, Array, Array], key: PRNGKey) -> tuple[Any, None]:
        state, memory, running, total = carry
        action, memory = act(state.obs, memory, key)
        state = jax.vmap(env.step)(state, action)
        total = total + jnp.where(running, state.reward, 0.0)
        return (state, memory, running & ~(state.terminal | state.truncated), total), None

    start = jax.vmap(env.reset)(jax.random.split(key_start, num_envs))
    carry = (start, initial_carry, jnp.ones(num_envs, bool), jnp.zeros(num_envs))
    (_, _, _, total), _ = jax.lax.scan(body, carry, jax.random.split(key_act, env.spec.episode_length))
    return total
