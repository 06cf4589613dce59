"""Acting in a batch of environments: rollouts with automatic resets, and episode returns."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.envs.base import Environment, EnvState
from coda_jax.types import PRNGKey, Trajectory

PolicyCarry = Any
"""What a policy remembers between steps: a pytree with the environments in front, such as a GRU's hidden state."""

Act = Callable[[Float[Array, "N A O"], PolicyCarry, PRNGKey], tuple[Float[Array, "N A U"], PolicyCarry]]
"""A joint policy over N environments: observations, carry, key -> actions in [-1, 1], next carry."""


@chex.dataclass(frozen=True)
class Rollout:
    """What N environments went through in T steps.

    steps:     `[T, N, ...]` joint experience; the horizon axis of `Trajectory` is T here, in front of N.
    truncated: `[T, N]` 1.0 where an episode was cut by the time limit after this step.
    """

    steps: Trajectory
    truncated: Float[Array, "*T N"]


def where_done(done: Array, if_done: Any, otherwise: Any) -> Any:
    """Selects between two pytrees environment by environment; `done` is `[N]`, leaves are `[N, ...]`."""

    def select(a: Array, b: Array) -> Array:
        return jnp.where(done.reshape(done.shape + (1,) * (b.ndim - 1)), a, b)

    return jax.tree.map(select, if_done, otherwise)


def step_and_reset(
    env: Environment, now: EnvState, action: Float[Array, "N A U"], key: PRNGKey
) -> tuple[EnvState, EnvState]:
    """Steps N environments; returns where the step led, and from where to act next (a new start where it ended)."""
    stepped = jax.vmap(env.step)(now, action)
    fresh = jax.vmap(env.reset)(jax.random.split(key, action.shape[0]))
    return stepped, where_done(stepped.terminal | stepped.truncated, fresh, stepped)


def rollout(
    env: Environment, act: Act, initial_carry: PolicyCarry, key: PRNGKey, num_envs: int, num_steps: int
) -> Rollout:
    """Lets a joint policy act for `num_steps` steps in `num_envs` environments.

    Args:
        env: the task.
        act: the joint policy.
        initial_carry: the policy's carry at the start of an episode, `[N, ...]` leaves; restored at every reset.
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
        now, memory = carry
        key_act, key_reset = jax.random.split(key)
        action, memory = act(now.obs, memory, key_act)
        stepped, following = step_and_reset(env, now, action, key_reset)
        memory = where_done(stepped.terminal | stepped.truncated, initial_carry, memory)
        steps = Trajectory(
            state=now.state,
            obs=now.obs,
            action=action,
            reward=stepped.reward,
            terminal=stepped.terminal.astype(jnp.float32),
        )
        return (following, memory), Rollout(steps=steps, truncated=stepped.truncated.astype(jnp.float32))

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
        now, memory, running, total = carry
        action, memory = act(now.obs, memory, key)
        now = jax.vmap(env.step)(now, action)
        total = total + jnp.where(running, now.reward, 0.0)
        return (now, memory, running & ~(now.terminal | now.truncated), total), None

    start = jax.vmap(env.reset)(jax.random.split(key_start, num_envs))
    carry = (start, initial_carry, jnp.ones(num_envs, bool), jnp.zeros(num_envs))
    (_, _, _, total), _ = jax.lax.scan(body, carry, jax.random.split(key_act, env.spec.episode_length))
    return total
