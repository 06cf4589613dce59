"""Same side: a small task over time on which miscoordination costs most of the return.

Points on a line, one an agent, move by a quarter of their actions. The team is rewarded while they are on the same side
of the origin, up or down alike, so which side is a convention that nothing observed tells: every agent sees its own
position and the time. With y_i = tanh(3 x_i) at the positions after a step, the reward is the mean over pairs of agents
of

    y_i y_j                          where the two are on the same side,
    -sharpness |y_i y_j|^sharpness   where they are on different sides.

At sharpness 1 this is the smooth product y_i y_j, on which a critic that knows both conventions alone extrapolates well
to mixed ones. A larger sharpness makes the penalty larger far from the origin and smaller near it.
"""

import dataclasses
import math
from typing import Annotated, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from annotated_types import Interval
from jaxtyping import Array, Float

from coda_jax.envs.base import Environment, EnvState
from coda_jax.ranges import Positive, Ranged
from coda_jax.types import PRNGKey, TaskSpec

EPISODE_LENGTH = 10
"""Time limit, in steps."""

SPEED = 0.25
"""Distance that an action of 1 moves an agent."""

STEEPNESS = 3.0
"""Factor on positions inside the tanh."""


@dataclasses.dataclass(frozen=True)
class SameSide(Ranged):
    """The settings of the task same side; static, hashable."""

    num_agents: Annotated[int, Interval(ge=2, lt=2**31)] = 2
    """A."""
    sharpness: Annotated[float, Interval(ge=1.0, lt=math.inf)] = 1.0
    """Weight and exponent of the penalty for being on different sides; 1 is the smooth product."""
    half_width: Positive = 0.5
    """Starts are uniform from minus this to this, for each agent on its own. The wider, the longer agents that begin on
    different sides stay there, even where all move in one direction."""


def same_side(config: SameSide = SameSide()) -> Environment:
    """Builds the task.

    The state holds the positions, then the time as a share of an episode: S = A + 1. Agent i observes its position and
    that time: O = 2. `set_state` restores the time too, rounded to whole steps; episodes end by the time limit alone.
    """
    spec = TaskSpec(
        name="same-side",
        num_agents=config.num_agents,
        state_dim=config.num_agents + 1,
        obs_dim=2,
        action_dim=1,
        episode_length=EPISODE_LENGTH,
    )

    def reset(key: PRNGKey) -> EnvState:
        return set_state(jnp.append(_starts(config, key, ()), 0.0))

    def set_state(state: Float[Array, "S"]) -> EnvState:
        time = jnp.round(jnp.clip(state[-1], 0.0, 1.0) * EPISODE_LENGTH).astype(jnp.int32)
        return show(state, jnp.zeros(()), time)

    def step(now: EnvState, action: Float[Array, "A U"]) -> EnvState:
        position = move(now.state[:-1], action[:, 0])
        time = now.time + 1
        return show(jnp.append(position, time / EPISODE_LENGTH), reward(config, position), time)

    def show(state: Float[Array, "S"], reward: Array, time: Array) -> EnvState:
        position, clock = state[:-1], jnp.broadcast_to(state[-1], (config.num_agents,))
        return EnvState(
            state=state,
            obs=jnp.stack([position, clock], axis=-1),
            reward=reward,
            terminal=jnp.zeros((), bool),
            truncated=time >= EPISODE_LENGTH,
            time=time,
        )

    return Environment(reset, step, set_state, spec)


def move(position: Float[Array, "*batch A"], action: Float[Array, "*batch A"]) -> Float[Array, "*batch A"]:
    """Positions after a step; actions beyond [-1, 1] are clipped."""
    return position + SPEED * jnp.clip(action, -1.0, 1.0)


def reward(config: SameSide, position: Float[Array, "*batch A"]) -> Float[Array, "*batch"]:
    """The team reward at the positions after a step: the mean over pairs of agents."""
    first, second = np.triu_indices(config.num_agents, k=1)
    y = jnp.tanh(STEEPNESS * position)
    return jnp.mean(_pair_reward(config.sharpness, y[..., first] * y[..., second]), axis=-1)


def convention_return(config: SameSide, num_nodes: int = 400) -> float:
    """The mean return when all agents move up (or all down) at full speed: the task's two conventions.

    Exact up to the midpoint rule over the starts of one pair of agents, all pairs having the same mean.

    Args:
        config: the task.
        num_nodes: nodes of the rule along each agent's start.
    """
    start = config.half_width * (2.0 * (np.arange(num_nodes) + 0.5) / num_nodes - 1.0)
    total = 0.0
    for time in range(1, EPISODE_LENGTH + 1):
        y = np.tanh(STEEPNESS * (start + SPEED * time))
        product = np.outer(y, y)
        penalty = config.sharpness * np.maximum(-product, 0.0) ** config.sharpness
        total += float(np.mean(np.maximum(product, 0.0) - penalty))
    return total


def optimal_return(config: SameSide, key: PRNGKey, num_starts: int = 2000, num_steps: int = 300) -> float:
    """The mean return of the best action sequences from random starts, found by gradient ascent in single precision.

    They are chosen in the knowledge of all positions, so no team that observes its own positions alone does better.
    Ascent begins at both conventions, and the better of the two ends counts.

    Args:
        config: the task.
        key: consumed; draws the starts.
        num_starts: starts to average over.
        num_steps: steps of Adam.
    """
    start = _starts(config, key, (num_starts,))
    up = jnp.full((EPISODE_LENGTH, num_starts, config.num_agents), 0.9)
    best = jnp.maximum(*(_ascend(config, start, first, num_steps) for first in (up, -up)))
    return float(jnp.mean(best))


def _ascend(
    config: SameSide, start: Float[Array, "N A"], action: Float[Array, "H N A"], num_steps: int
) -> Float[Array, "N"]:
    """The best returns seen along projected gradient ascent on action sequences, one a start."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, num_steps))

    def returns(action: Float[Array, "H N A"]) -> tuple[Array, Array]:
        position = start[None] + SPEED * jnp.cumsum(action, axis=0)
        each = jnp.sum(reward(config, position), axis=0)
        return jnp.sum(each), each

    def improve(
        carry: tuple[Array, optax.OptState, Array], _: None
    ) -> tuple[tuple[Array, optax.OptState, Array], None]:
        action, memory, best = carry
        gradient, each = jax.grad(returns, has_aux=True)(action)
        change, memory = optimizer.update(-gradient, memory)
        action = jnp.clip(cast(Array, optax.apply_updates(action, change)), -1.0, 1.0)
        return (action, memory, jnp.maximum(best, each)), None

    carry = (action, optimizer.init(action), jnp.full(start.shape[:1], -jnp.inf))
    (action, _, best), _ = jax.lax.scan(improve, carry, length=num_steps)
    return jnp.maximum(best, returns(action)[1])


def _pair_reward(sharpness: float, product: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    # The lower bound keeps the gradient of the power finite where the product is positive.
    penalty = sharpness * jnp.maximum(-product, 1e-12) ** sharpness
    return jnp.where(product >= 0.0, product, -penalty)


def _starts(config: SameSide, key: PRNGKey, shape: tuple[int, ...]) -> Float[Array, "*shape A"]:
    shape = (*shape, config.num_agents)
    return jax.random.uniform(key, shape, minval=-config.half_width, maxval=config.half_width)
