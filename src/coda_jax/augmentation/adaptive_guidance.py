"""Guidance whose scale follows the spread of the synthetic actions around the policy's; not in the paper.

The guidance gradient is normalised over horizon, agents and action dimensions, so one lambda means another strength on
another task, at another number of agents, and for another policy. The spread has one meaning everywhere.
"""

import dataclasses
import math

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from coda_jax.ranges import Positive, Ranged, RangeError


@dataclasses.dataclass(frozen=True)
class AdaptiveGuidance(Ranged):
    """Asks for a spread of synthetic actions in place of a guidance scale lambda.

    The spread s is the root mean square of a - mu(o) over trajectories, horizon, agents and action dimensions
    (`evaluation.action_spread`): in units of the actions, whose range is [-1, 1], and of the standard deviation 1 of
    the guide's N(a; mu, 1). So it stands for a mean log-likelihood of -H A U (ln(2 pi) + s^2) / 2.

    Before each generation but the first, log lambda moves by `rate * log(s / target)`, where s is the spread of the
    generation before under the policy that guided it, and is clipped to `lowest` and `highest`: a proportional step, as
    PolyGRAD's (Rigter et al. 2024) toward standardised actions. The spread falls with lambda until guidance overshoots,
    and rises beyond. Below that least spread no target is reached, and lambda ends at `highest`.

    Examples:
        >>> cj.AdaptiveGuidance(target=0.1).start
        0.1
    """

    target: Positive = 0.2
    """The spread that is asked for."""
    start: Positive = 0.1
    """lambda of the first generation."""
    rate: Positive = 0.5
    """Change of log lambda for a unit of log(spread / target)."""
    lowest: Positive = 1e-3
    """Least lambda."""
    highest: Positive = 1.0
    """Largest lambda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lowest <= self.start <= self.highest:
            raise RangeError("start", self.start, f"it must be at least {self.lowest:g} and at most {self.highest:g}")


@chex.dataclass(frozen=True)
class GuidanceState:
    """The state of adaptive guidance; one seed's, traced.

    scale:  lambda of the last guided generation.
    spread: the spread of its trajectories; the target before the first generation.
    """

    scale: Float[Array, "*batch"]
    spread: Float[Array, "*batch"]


def initial_guidance(config: AdaptiveGuidance) -> GuidanceState:
    """The state before the first generation, whose lambda is `start`."""
    return GuidanceState(scale=jnp.float32(config.start), spread=jnp.float32(config.target))


def adapt_scale(config: AdaptiveGuidance, state: GuidanceState, is_guided: Bool[Array, ""]) -> GuidanceState:
    """The state with the lambda of the coming generation, if that is a guided one; its spread is that of the last."""
    log_scale = jnp.log(state.scale) + config.rate * jnp.log(state.spread / config.target)
    scale = jnp.exp(jnp.clip(log_scale, math.log(config.lowest), math.log(config.highest)))
    return dataclasses.replace(state, scale=jnp.where(is_guided, scale, state.scale))
