"""The protocol of an offline multi-agent learner, the weights of trajectories in its losses, and a policy's unroll."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.types import Metrics, PRNGKey, Trajectory

LearnerState = Any
"""Everything a learner learns: parameters, target parameters, optimiser states. One seed's; callers vmap over seeds."""

Carry = Any
"""The recurrent state of a policy, with leading batch axes; `()` for a policy without memory."""


@chex.dataclass(frozen=True)
class RowWeights:
    """The weight, zero or larger, of each trajectory of a mini-batch in each term of a learner's losses.

    Each term is a weighted mean, so only ratios of weights matter; a term with weights of 0 alone is 0.

    critic:  `[*batch, B]` in the critics' loss.
    actor:   `[*batch, B]` in the policy's Q term and its normaliser.
    cloning: `[*batch, B]` in the behaviour cloning term.

    Examples:
        >>> weights = cj.uniform_weights(4)
        >>> recorded = jnp.array([0.0, 1.0, 1.0, 1.0])  # the first trajectory is synthetic
        >>> cj.RowWeights(critic=weights.critic, actor=weights.actor, cloning=recorded).cloning.shape
        (4,)
    """

    critic: Float[Array, "*batch B"]
    actor: Float[Array, "*batch B"]
    cloning: Float[Array, "*batch B"]


def uniform_weights(batch_size: int) -> RowWeights:
    """Equal weights of all trajectories of a mini-batch in all terms, which make these plain means.

    Examples:
        >>> cj.uniform_weights(3).actor.tolist()
        [1.0, 1.0, 1.0]
    """
    ones = jnp.ones(batch_size)
    return RowWeights(critic=ones, actor=ones, cloning=ones)


def weighted_mean(values: Float[Array, "*shape"], weights: Float[Array, "*shape"]) -> Float[Array, ""]:
    """The mean sum(w x) / sum(w); 0, with gradient 0, where all weights are 0."""
    total = jnp.sum(weights)
    return jnp.sum(weights * values) / jnp.where(total > 0.0, total, 1.0)


class Learner(NamedTuple):
    """An offline multi-agent learner: pure functions over pytrees.

    init:          `key -> state`. The key is consumed.
    update:        `(state, trajectory [B, H, ...], RowWeights [B], key) -> (state, metrics)`, one gradient step.
                   The key is consumed.
    act:           `(state, obs [*batch, A, O], carry) -> (action [*batch, A, U], carry)`, the joint policy's actions
                   mu^i(o^i) without noise, in [-1, 1].
    initial_carry: `batch_shape -> carry`, the policy's memory at the start of an episode or of a window.
    value:         `(state, global_state [*batch, S], action [*batch, A, U]) -> [*batch]`, the discounted return of a
                   joint action by the critics, the smaller of twins, a mean over agents; None without critics.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> learner = cj.maddpg_bc(env.spec, cj.MaddpgBcConfig(), cj.raw_inputs(env.spec))
        >>> state = learner.init(jax.random.key(1))
        >>> action, carry = learner.act(state, jnp.zeros((5, 2, 0)), learner.initial_carry((5,)))
        >>> action.shape
        (5, 2, 1)
    """

    init: Callable[[PRNGKey], LearnerState]
    update: Callable[[LearnerState, Trajectory, RowWeights, PRNGKey], tuple[LearnerState, Metrics]]
    act: Callable[[LearnerState, Float[Array, "*batch A O"], Carry], tuple[Float[Array, "*batch A U"], Carry]]
    initial_carry: Callable[[tuple[int, ...]], Carry]
    value: (
        Callable[[LearnerState, Float[Array, "*batch S"], Float[Array, "*batch A U"]], Float[Array, "*batch"]] | None
    ) = None


def unroll(learner: Learner, state: LearnerState, obs: Float[Array, "*batch H A O"]) -> Float[Array, "*batch H A U"]:
    """The actions mu(o_t) of the joint policy along windows, its memory empty at the first token, as in training."""
    *batch_shape, _, _, _ = obs.shape
    action, _ = follow(learner, state, obs, learner.initial_carry(tuple(batch_shape)))
    return action


def follow(
    learner: Learner, state: LearnerState, obs: Float[Array, "*batch H A O"], memory: Carry
) -> tuple[Float[Array, "*batch H A U"], Carry]:
    """The actions mu(o_t) of the joint policy along windows, and its memory behind them, from a memory before them."""

    def step(carry: Carry, obs_t: jax.Array) -> tuple[Carry, jax.Array]:
        action, carry = learner.act(state, obs_t, carry)
        return carry, action

    memory, action = jax.lax.scan(step, memory, jnp.moveaxis(obs, -3, 0))
    return jnp.moveaxis(action, 0, -3), memory
