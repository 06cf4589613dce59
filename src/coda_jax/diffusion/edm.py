"""EDM (Karras et al. 2022): noise levels, preconditioning and training loss."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from coda_jax.ranges import NonNegative, Positive, Ranged, RangeError, Real
from coda_jax.types import PRNGKey

Network = Callable[[Array, Array, Array | None], Array]
"""`(x_in [*batch, H, C], c_noise [*batch, 1, 1] or [1, ..., 1], condition) -> F [*batch, H, C]`."""

Weight = Literal["edm", "plain"]


@runtime_checkable
class Denoise(Protocol):
    """Type of a preconditioned denoiser."""

    def __call__(
        self,
        tau: Float[Array, "*batch H C"],
        sigma: Float[Array, "..."] | float,
        condition: Float[Array, "... K"] | None = None,
    ) -> Float[Array, "*batch H C"]:
        """D(tau; sigma), with sigma a scalar or `[*batch]`."""
        ...


@dataclasses.dataclass(frozen=True)
class NoiseConfig(Ranged):
    """Distribution of the noise levels in training (paper, Tables 2 and 3)."""

    log_mean: Real = -1.2
    """Mean of ln sigma."""
    log_std: NonNegative = 1.2
    """Standard deviation of ln sigma."""
    sigma_min: Positive = 0.002
    """Smallest noise level; smaller draws are clipped to it."""
    sigma_max: Positive = 80.0
    """Largest noise level; larger draws are clipped to it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sigmas(self.sigma_min, self.sigma_max)


def check_sigmas(sigma_min: float, sigma_max: float) -> None:
    """Refuses noise levels of which the lowest is not below the highest in single precision, by a `RangeError`."""
    if not np.float32(sigma_min) < np.float32(sigma_max):
        raise RangeError("sigma_min", sigma_min, f"it must be below sigma_max, {sigma_max:g}")


def karras_sigmas(
    num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float[Array, " levels"]:
    """The noise levels of the sampler, sigma_0 > ... > sigma_{N-1} > sigma_N = 0 (Karras et al. 2022, Eq. 5).

    They run from `sigma_max` to `sigma_min`, evenly spaced in sigma^(1/rho), followed by 0: `num_steps + 1` numbers.
    """
    return jnp.append(_curved(jnp.linspace(0.0, 1.0, num_steps), sigma_min, sigma_max, rho), 0.0)


def check_levels(num_steps: int, sigma_min: float, sigma_max: float, rho: float) -> None:
    """Refuses noise levels that do not decrease from `sigma_max` to `sigma_min` in single precision.

    On the host, because settings are made before there is a device. The ends may be off by 1 %.

    Raises:
        RangeError: with all the parameters, at `sigma_min`.
    """
    with np.errstate(all="ignore"):
        levels = _curved(np.linspace(0.0, 1.0, num_steps, dtype=np.float32), sigma_min, sigma_max, rho)
    reaches = np.allclose(levels[[0, -1]], [sigma_max, sigma_min], rtol=0.01, atol=0.0)
    if not (reaches and (np.diff(levels) < 0).all()):
        raise RangeError(
            "sigma_min",
            sigma_min,
            f"{num_steps} noise levels must decrease to it from sigma_max, {sigma_max:g}, with rho {rho:g} "
            "in single precision",
        )


def _curved(ramp: Any, sigma_min: float, sigma_max: float, rho: float) -> Any:
    """Noise levels at places of a ramp from 0 to 1, an array of JAX or numpy."""
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (top + ramp * (bottom - top)) ** rho


def training_sigmas(key: PRNGKey, shape: tuple[int, ...], noise: NoiseConfig = NoiseConfig()) -> Float[Array, "..."]:
    """Log-normal noise levels of the given shape, clipped to [sigma_min, sigma_max]. The key is consumed."""
    log_sigma = noise.log_mean + noise.log_std * jax.random.normal(key, shape)
    return jnp.clip(jnp.exp(log_sigma), noise.sigma_min, noise.sigma_max)


def precondition(network: Network, sigma_data: float) -> Denoise:
    """Turns a raw network F into the denoiser D (Karras et al. 2022, Eq. 7 and Table 1).

    D(tau; sigma) = c_skip tau + c_out F(c_in tau, c_noise), so that the input and the target of F have unit variance at
    every noise level if the data's standard deviation is `sigma_data`. A scalar sigma is not broadcast before the
    network, so its embedding is computed once for the whole batch. sigma must be positive (because of ln sigma).
    """

    def denoise(
        tau: Float[Array, "*batch H C"],
        sigma: Float[Array, "..."] | float,
        condition: Float[Array, "... K"] | None = None,
    ) -> Float[Array, "*batch H C"]:
        sigma = jnp.asarray(sigma, tau.dtype)
        sigma = sigma.reshape(sigma.shape + (1,) * (tau.ndim - sigma.ndim))
        total = jnp.sqrt(sigma**2 + sigma_data**2)
        c_skip = (sigma_data / total) ** 2
        c_out = sigma * sigma_data / total
        c_in = 1 / total
        c_noise = jnp.log(sigma) / 4
        return c_skip * tau + c_out * network(c_in * tau, c_noise, condition)

    return denoise


def loss_weight(sigma: Float[Array, "..."], sigma_data: float, weight: Weight) -> Float[Array, "..."]:
    """`edm`: 1 / c_out^2, equal weight of all noise levels (Karras et al. 2022); `plain`: 1 (paper, Eq. 27)."""
    if weight == "plain":
        return jnp.ones_like(sigma)
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def loss(
    denoise: Denoise,
    z0: Float[Array, "*batch H C"],
    key: PRNGKey,
    condition: Float[Array, "*batch K"] | None = None,
    *,
    noise: NoiseConfig = NoiseConfig(),
    sigma_data: float = 1.0,
    weight: Weight = "edm",
) -> Float[Array, ""]:
    """Denoising loss E[w(sigma) |D(z0 + sigma eps; sigma) - z0|^2] / (H C) (paper, Eq. 26-27). The key is consumed.

    Each trajectory has its own noise level. For data ~ N(0, sigma_data^2) the minimum of the `edm` weighting is 1.
    """
    sigma, eps = draw_noise(z0, key, noise)
    return loss_at(denoise, z0, sigma, eps, condition, sigma_data=sigma_data, weight=weight)


def draw_noise(
    z0: Float[Array, "*batch H C"], key: PRNGKey, noise: NoiseConfig = NoiseConfig()
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch H C"]]:
    """The noise level sigma of each trajectory, and eps ~ N(0, I). The key is consumed."""
    key_sigma, key_noise = jax.random.split(key)
    return training_sigmas(key_sigma, z0.shape[:-2], noise), jax.random.normal(key_noise, z0.shape)


def loss_at(
    denoise: Denoise,
    z0: Float[Array, "*batch H C"],
    sigma: Float[Array, "*batch"],
    eps: Float[Array, "*batch H C"],
    condition: Float[Array, "*batch K"] | None = None,
    *,
    sigma_data: float = 1.0,
    weight: Weight = "edm",
) -> Float[Array, ""]:
    """`loss` for given noise, of which it is a mean over trajectories."""
    tau = z0 + sigma[..., None, None] * eps  # Eq. 26
    squared_error = jnp.mean((denoise(tau, sigma, condition) - z0) ** 2, axis=(-2, -1))  # Eq. 27
    return jnp.mean(loss_weight(sigma, sigma_data, weight) * squared_error)
