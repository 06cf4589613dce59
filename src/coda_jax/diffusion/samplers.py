"""From noise to trajectories: guided sampling by the solver of the configuration."""

from jaxtyping import Array, Float

from coda_jax.diffusion.dpm_solver import dpm_solver_sample
from coda_jax.diffusion.estimate import Known
from coda_jax.diffusion.guidance import Denoiser, Guide
from coda_jax.diffusion.heun import heun_sample
from coda_jax.diffusion.sampler_config import SamplerConfig
from coda_jax.types import PRNGKey

__all__ = ["Known", "SamplerConfig", "heun_sample", "sample"]


def sample(
    denoise: Denoiser,
    key: PRNGKey,
    shape: tuple[int, int, int],
    config: SamplerConfig,
    guide: Guide | None = None,
    guidance: float | Float[Array, ""] = 0.0,
    known: Known | None = None,
) -> Float[Array, "B H C"]:
    """Samples trajectories, guided, by the solver of the configuration: Algorithm 1 or DPM-Solver++(2M).

    Args:
      denoise: the denoiser D, with whatever condition it takes already applied.
      key: consumed.
      shape: (B, H, C) of the sample.
      config: the solver, the levels and the churn.
      guide: the direction to follow (see `guidance.score_guide`); None samples from the prior.
      guidance: lambda, the guidance scale (may be traced); without a guide it is not used. It means the same strength
        with either solver. At zero, `dpm++` does not evaluate the guide.
      known: entries that are given; the sample has their values, to rounding. How they act on the others is set by
        `config.known_conditioning`.

    Returns:
      Trajectories in diffusion space.

    Raises:
      ValueError: the known values or their mask do not have the shape of the sample.
    """
    if known is not None:
        _check(known, shape)
    solve = heun_sample if config.solver == "heun" else dpm_solver_sample
    return solve(denoise, key, shape, config, guide, guidance, known)


def _check(known: Known, shape: tuple[int, int, int]) -> None:
    if known.values.shape != shape:
        raise ValueError(f"known values must have the shape of the sample, {shape}, not {known.values.shape}")
    if known.mask.shape not in (shape, (1, *shape[1:])):
        raise ValueError(f"the mask of known entries must be {shape} or {(1, *shape[1:])}, not {known.mask.shape}")
