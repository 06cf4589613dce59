"""Settings of the sampler, shared by its solvers."""

import dataclasses
from typing import Literal

from jaxtyping import Array, Float

from coda_jax.diffusion.edm import karras_sigmas


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The parameters of Algorithm 1, all static. Without churn (the default) sampling solves the ODE of Eq. 2.

    Examples:
        >>> cj.SamplerConfig(num_steps=32).sigma_max
        80.0
    """

    num_steps: int = 128
    """N, the diffusion steps; the denoiser is called 2N - 1 times by `heun`, N times by `dpm++`."""
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
    solver: Literal["heun", "dpm++"] = "heun"
    """`heun`: Algorithm 1, as in the paper; `dpm++`: DPM-Solver++(2M), one denoiser call a step, without churn."""
    known_conditioning: Literal["replace", "regress"] = "replace"
    """How known entries act on the others: `replace` puts their values into the denoised estimate, which the others
    follow only in part; `regress` also adds the others' regression on them, at twice the cost (`estimate.hold`)."""

    def __post_init__(self) -> None:
        if self.num_steps < 2:
            raise ValueError(f"num_steps must be at least 2, not {self.num_steps}: the noise schedule has two ends")
        if self.solver == "dpm++" and self.S_churn > 0:
            raise ValueError(
                f"S_churn must be 0 with the solver dpm++, not {self.S_churn}: its history allows no noise"
            )


def noise_levels(config: SamplerConfig) -> Float[Array, " levels"]:
    """sigma_0 > ... > sigma_{N-1} > sigma_N = 0 (`edm.karras_sigmas`)."""
    return karras_sigmas(config.num_steps, config.sigma_min, config.sigma_max, config.rho)
