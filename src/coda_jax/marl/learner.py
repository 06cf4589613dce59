"""The protocol of an offline multi-agent learner, and the joint policy's unroll over a window."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.types import Metrics, PRNGKey

LearnerState = Any
"""Everything a learner learns: parameters, target parameters, optimiser states. One seed's; callers vmap over seeds."""

Carry = Any
"""The recurrent state of a policy, with leading batch axes; `()` for a policy without memory."""


@chex.dataclass(frozen=True)
class RowWeights:
    """The weight of each trajectory of a mini-batch in each term of a learner's losses; 0 leaves it out.

    critic:  `[*batch, B]` in the critic's loss.
    actor:   `[*batch, B]` in the actor's Q term.
    cloning: `[*batch, B]` in the behaviour cloning term.
    """

    critic: Float[Array, "*batch B"]
    actor: Float[Array, "*batch B"]
    cloning: Float[Array, "*batch B"]


class Learner(NamedTuple):
    """An offline multi-agent learner: pure functions over pytrees.

    init:          `key -> state`. The key is consumed.
    update:        `(state, trajectory [B, H, ...], key) -> (state, metrics)`, one gradient step. The key is consumed.
                   A learner that can tell the rows of a mini-batch apart takes `RowWeights` as a fourth argument.
    act:           `(state, obs [*batch, A, O], carry) -> (action [*batch, A, U], carry)`, the joint policy's actions
                   mu^i(o^i) without noise, in [-1, 1].
    initial_carry: `batch_shape -> carry`, the policy's memory at the start of an episode or of a window.

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
    update: Callable[..., tuple[LearnerState, Metrics]]
    act: Callable[[LearnerState, Float[Array, "*batch A O"], Carry], tuple[Float[Array, "*batch A U"], Carry]]
    initial_carry: Callable[[tuple[int, ...]], Carry]


def unroll(learner: Learner, state: LearnerState, obs: Float[Array, "*batch H A O"]) -> Float[Array, "*batch H A U"]:
    """The actions mu(o_t) of the joint policy along windows, its memory empty at the first token, as in training."""
    *batch_shape, _, _, _ = obs.shape

    def step(carry: Carry, obs_t: jax.Array) -> tuple[Carry, jax.Array]:
        action, carry = learner.act(state, obs_t, carry)
        return carry, action

    _, action = jax.lax.scan(step, learner.initial_carry(tuple(batch_shape)), jnp.moveaxis(obs, -3, 0))
    return jnp.moveaxis(action, 0, -3)
