"""From noise to trajectories: the guided stochastic Heun sampler (Algorithm 1), and sampling in chunks."""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from coda_jax.diffusion.edm import karras_sigmas
from coda_jax.diffusion.guidance import Denoiser, Guide, guidance_schedule
from coda_jax.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The parameters of Algorithm 1, all static. Without churn (the default) sampling solves the ODE of Eq. 2.

    Examples:
        >>> cj.SamplerConfig(num_steps=32).sigma_max
        80.0
    """

    num_steps: int = 128
    """N, the diffusion steps; the denoiser is called 2N - 1 times."""
    sigma_min: float = 0.002
    """Lowest noise level before zero."""
    sigma_max: float = 80.0
    """Noise level of the start."""
    rho: float = 7.0
    """Curvature of the noise schedule: the larger, the more steps at low noise."""
    S_churn: float = 0.0
    """Total churn: fresh noise raises sigma_n by gamma_n = min(S_churn / N, sqrt(2) - 1); 0 is deterministic."""
    S_min: float = 0.05
    """Lowest noise level at which to churn."""
    S_max: float = 50.0
    """Highest noise level at which to churn."""
    S_noise: float = 1.003
    """Standard deviation of the fresh noise; slightly above 1 makes up for detail lost in denoising."""
    guidance_schedule: Literal["annealed", "constant"] = "annealed"
    """How the guidance scale is spread over the steps."""
    through_denoiser: bool = False
    """Whether the guide's direction is carried back through the denoiser (reconstruction guidance, Ho et al. 2022), so
    that the consequences of actions move with them. A departure from the paper, which moves the actions alone."""

    def __post_init__(self) -> None:
        if self.num_steps < 2:
            raise ValueError(f"num_steps must be at least 2, not {self.num_steps}: the noise schedule has two ends")


class _Step(NamedTuple):
    """What sets one step n apart from another; stacked, the sampler's schedule."""

    n: Int[Array, "*steps"]
    sigma_hat: Float[Array, "*steps"]
    sigma_next: Float[Array, "*steps"]
    churn_std: Float[Array, "*steps"]
    lambda_: Float[Array, "*steps"]


def _schedule(config: SamplerConfig, guidance: float | Float[Array, ""]) -> _Step:
    sigmas = karras_sigmas(config.num_steps, config.sigma_min, config.sigma_max, config.rho)
    sigma, sigma_next = sigmas[:-1], sigmas[1:]
    churned = (config.S_min <= sigma) & (sigma <= config.S_max)
    gamma = jnp.where(churned, min(config.S_churn / config.num_steps, math.sqrt(2.0) - 1.0), 0.0)
    return _Step(
        n=jnp.arange(config.num_steps),
        sigma_hat=sigma + gamma * sigma,  # Alg. 1, l. 7
        sigma_next=sigma_next,
        churn_std=config.S_noise * sigma * jnp.sqrt(gamma * (2.0 + gamma)),  # sqrt(sigma_hat^2 - sigma^2), l. 7
        lambda_=guidance * guidance_schedule(config.guidance_schedule, config.num_steps),
    )


def heun_sample(
    denoise: Denoiser,
    key: PRNGKey,
    shape: tuple[int, int, int],
    config: SamplerConfig,
    guide: Guide | None = None,
    guidance: float | Float[Array, ""] = 0.0,
) -> Float[Array, "B H C"]:
    """Samples trajectories by Algorithm 1: Heun steps down the noise levels, each one moved along the guide.

    The network never sees sigma = 0, so the last step is a plain Euler step and stands outside the scan: 2N - 1 calls
    of `denoise`, and N of `guide`. The noise does not depend on the guide, so guidance zero is the unguided sample.

    Args:
      denoise: the denoiser D, with whatever condition it takes already applied.
      key: consumed.
      shape: (B, H, C) of the sample.
      config: the levels and the churn.
      guide: the direction to follow (see `guidance.score_guide`); None samples from the prior.
      guidance: lambda, the guidance scale (may be traced); without a guide it is not used.

    Returns:
      Trajectories in diffusion space.

    Examples:
        >>> gaussian = lambda tau, sigma: tau / (1 + sigma**2)  # the ideal denoiser of standard normal data
        >>> toward_one = lambda denoised: jnp.ones_like(denoised)
        >>> config = cj.SamplerConfig(num_steps=32)
        >>> samples = cj.heun_sample(gaussian, jax.random.key(0), (512, 1, 1), config, toward_one, guidance=0.05)
        >>> bool(jnp.abs(samples.mean() - 0.05 * 28) < 0.2)  # the guidance scale times the closed form's 28
        True
    """
    key_start, key_churn = jax.random.split(key)
    steps = _schedule(config, guidance)

    def euler_step(tau: Float[Array, "B H C"], step: _Step):
        tau_hat = tau
        if config.S_churn > 0:
            key_step = jax.random.fold_in(key_churn, step.n)
            tau_hat = tau + step.churn_std * jax.random.normal(key_step, shape)  # l. 6-7
        if guide is not None and config.through_denoiser:
            denoised, pull_back = jax.vjp(lambda tau: denoise(tau, step.sigma_hat), tau_hat)
        else:
            denoised, pull_back = denoise(tau_hat, step.sigma_hat), None  # l. 8, in the unconstrained space
        d = (tau_hat - denoised) / step.sigma_hat  # l. 9, before guidance
        if guide is not None:
            g = guide(denoised)  # l. 10-15
            if pull_back is not None:
                g = _of_length(pull_back(g)[0], g)
            tau_hat = tau_hat + step.lambda_ * g  # l. 16-17
        tau_next = tau_hat + (step.sigma_next - step.sigma_hat) * d  # l. 18, from the churned and guided point
        return tau_hat, d, tau_next

    def heun_step(tau: Float[Array, "B H C"], step: _Step):
        tau_hat, d, tau_next = euler_step(tau, step)
        d_next = (tau_next - denoise(tau_next, step.sigma_next)) / step.sigma_next  # l. 20
        return tau_hat + (step.sigma_next - step.sigma_hat) * (0.5 * d + 0.5 * d_next), None  # l. 21-22

    # for n in range(N - 1):                  # l. 5
    #     tau = heun_step(tau, steps[n])      # l. 6-22
    # tau = euler_step(tau, steps[N - 1])     # l. 6-18, down to sigma_N = 0
    tau = config.sigma_max * jax.random.normal(key_start, shape)  # l. 4
    tau, _ = jax.lax.scan(heun_step, tau, jax.tree.map(lambda x: x[:-1], steps))
    _, _, tau = euler_step(tau, jax.tree.map(lambda x: x[-1], steps))
    return tau


def _of_length(direction: Float[Array, "B H C"], model: Float[Array, "B H C"]) -> Float[Array, "B H C"]:
    """The direction, as long over horizon and channels as its model; zero where there is none."""
    length, wanted = (jnp.sqrt(jnp.sum(x**2, axis=(1, 2), keepdims=True)) for x in (direction, model))
    return direction * (wanted / (length + 1e-12))


def sample_in_chunks(
    sample: Callable[[PRNGKey, int], Float[Array, "chunk H C"]], key: PRNGKey, num_samples: int, chunk_size: int
) -> Float[Array, "num_samples H C"]:
    """Draws `num_samples` trajectories, at most `chunk_size` at a time, so that a chunk fits the processor's cache.

    The chunks are equal, ceil(num_samples / number of chunks), and what exceeds `num_samples` is cut off the last one.
    Under `vmap` over seeds a chunk holds that many trajectories *a seed*: divide `chunk_size` by the seeds of a device.

    Args:
      sample: (key, B) -> B trajectories, B static, such as `heun_sample` on `shape=(B, H, C)`.
      key: consumed; chunk c is `sample(jax.random.fold_in(key, c), B)`.
      num_samples: how many trajectories to draw in all.
      chunk_size: the most to draw at a time.
    """
    num_chunks = math.ceil(num_samples / chunk_size)
    size = math.ceil(num_samples / num_chunks)
    chunks = jax.lax.map(lambda c: sample(jax.random.fold_in(key, c), size), jnp.arange(num_chunks))
    return chunks.reshape(num_chunks * size, *chunks.shape[2:])[:num_samples]
