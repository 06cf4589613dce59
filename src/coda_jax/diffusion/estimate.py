"""The denoised estimate of a sampler's step, its known entries, and the direction in which guidance moves it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from coda_jax.diffusion.guidance import Denoiser, Guide


class Known(NamedTuple):
    """Entries of the sampled trajectories that are given, such as a recorded first token; all others are sampled.

    values: `[B, H, C]` in diffusion space; arbitrary where unknown.
    mask:   `[B, H, C]` or `[1, H, C]`, true where known.
    """

    values: Float[Array, "B H C"]
    mask: Bool[Array, "#B H C"]


class Estimate(NamedTuple):
    """What a solver learns from one call of the denoiser.

    denoised:  D(tau; sigma), known entries at their values.
    direction: () -> g, the guide's direction at that estimate; nothing is computed before it is called.
    """

    denoised: Float[Array, "B H C"]
    direction: Callable[[], Float[Array, "B H C"]]


def hold(denoise: Denoiser, known: Known | None) -> Denoiser:
    """The denoiser whose estimate has the known entries at their values."""
    if known is None:
        return denoise
    return lambda tau, sigma: jnp.where(known.mask, known.values, denoise(tau, sigma))


def estimate(
    denoise: Denoiser,
    guide: Guide,
    known: Known | None,
    through_denoiser: bool,
    tau: Float[Array, "B H C"],
    sigma: Float[Array, ""],
) -> Estimate:
    """Denoises tau and prepares the guide's direction there.

    Args:
      denoise: the denoiser, known entries held (`hold`).
      guide: sees the denoised estimate.
      known: entries that the direction leaves alone. It is not normalised anew without them.
      through_denoiser: carry the direction back through the denoiser, at unchanged length.
      tau: noisy trajectories.
      sigma: their noise level.
    """
    if not through_denoiser:
        denoised = denoise(tau, sigma)
        return Estimate(denoised, lambda: _at_unknown(guide(denoised), known))
    denoised, pull_back = jax.vjp(lambda tau: denoise(tau, sigma), tau)

    def direction() -> Float[Array, "B H C"]:
        g = _at_unknown(guide(denoised), known)
        return _of_length(_at_unknown(pull_back(g)[0], known), g)

    return Estimate(denoised, direction)


def _at_unknown(direction: Float[Array, "B H C"], known: Known | None) -> Float[Array, "B H C"]:
    return direction if known is None else jnp.where(known.mask, 0.0, direction)


def _of_length(direction: Float[Array, "B H C"], model: Float[Array, "B H C"]) -> Float[Array, "B H C"]:
    """The direction, as long over horizon and channels as its model; zero where there is none."""
    length, wanted = (jnp.sqrt(jnp.sum(x**2, axis=(1, 2), keepdims=True)) for x in (direction, model))
    return direction * (wanted / (length + 1e-12))
