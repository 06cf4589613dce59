"""From noise to trajectories: guided sampling by either solver, and sampling in chunks."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.diffusion.dpm_solver import dpm_solver_sample
from coda_jax.diffusion.estimate import Known
from coda_jax.diffusion.guidance import Denoiser, Guide
from coda_jax.diffusion.heun import heun_sample
from coda_jax.diffusion.sampler_config import SamplerConfig
from coda_jax.types import PRNGKey

__all__ = ["Known", "SamplerConfig", "heun_sample", "sample", "sample_in_chunks"]


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


def sample_in_chunks(
    sample: Callable[[PRNGKey, int], Float[Array, "chunk H C"]], key: PRNGKey, num_samples: int, chunk_size: int
) -> Float[Array, "num_samples H C"]:
    """Draws `num_samples` trajectories, at most `chunk_size` at a time, so that a chunk fits the processor's cache.

    The chunks are equal, ceil(num_samples / number of chunks), and what exceeds `num_samples` is cut off the last one.
    Under `vmap` over seeds a chunk holds that many trajectories *a seed*: divide `chunk_size` by the seeds of a device.

    Args:
      sample: (key, B) -> B trajectories, B static, such as `sample` on `shape=(B, H, C)`.
      key: consumed; chunk c is `sample(jax.random.fold_in(key, c), B)`.
      num_samples: how many trajectories to draw in all.
      chunk_size: the most to draw at a time.
    """
    num_chunks = math.ceil(num_samples / chunk_size)
    size = math.ceil(num_samples / num_chunks)
    chunks = jax.lax.map(lambda c: sample(jax.random.fold_in(key, c), size), jnp.arange(num_chunks))
    return chunks.reshape(num_chunks * size, *chunks.shape[2:])[:num_samples]
