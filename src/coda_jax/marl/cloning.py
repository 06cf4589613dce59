"""The policy loss of TD3+BC (Fujimoto and Gu 2021): normalised values beside behaviour cloning."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.marl.learner import RowWeights, weighted_mean
from coda_jax.types import Metrics


def cloning_policy_loss(
    value: Float[Array, "*tokens A"],
    mu: Float[Array, "*tokens A U"],
    action: Float[Array, "*tokens A U"],
    weights: RowWeights,
    alpha_bc: float,
) -> tuple[Float[Array, ""], Metrics]:
    """The loss -(alpha_BC / mean|Q|) mean(Q) + mean((mu - a)^2).

    With values of best responses under data, its gradient through `mu` is Eq. 7 for all agents at once. The normaliser
    is a constant to the gradient: otherwise it would cancel that of the Q term wherever all values have one sign.

    Args:
        value: of each agent's action mu^i(o_t^i), depending on `mu`.
        mu: the policies' actions.
        action: the actions in the data.
        weights: `[*tokens]` of every token in the two terms; the normaliser has those of the Q term.
        alpha_bc: weight of the Q term.

    Returns:
        The loss, and `policy_loss`, `bc_loss` and `policy_q` (the mean value) as metrics.
    """
    mean_q = weighted_mean(jnp.mean(value, axis=-1), weights.actor)
    mean_abs_q = weighted_mean(jnp.mean(jnp.abs(value), axis=-1), weights.actor)
    mean_abs_q = jnp.maximum(mean_abs_q, 1e-8)  # values that are all 0 have no gradient
    bc_loss = weighted_mean(jnp.mean((mu - action) ** 2, axis=(-2, -1)), weights.cloning)
    loss = -alpha_bc / jax.lax.stop_gradient(mean_abs_q) * mean_q + bc_loss
    return loss, {"policy_loss": loss, "bc_loss": bc_loss, "policy_q": mean_q}
