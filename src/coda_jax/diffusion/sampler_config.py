"""Settings of the sampler, shared by its solvers."""

import dataclasses
import math
from typing import Annotated, Literal

from annotated_types import Interval
from jaxtyping import Array, Float

from coda_jax.diffusion.edm import check_levels, check_sigmas, karras_sigmas
from coda_jax.ranges import NonNegative, Positive, Ranged, RangeError


@dataclasses.dataclass(frozen=True)
class SamplerConfig(Ranged):
    """The parameters of Algorithm 1, all static. Without churn (the default) sampling solves the ODE of Eq. 2.

    Examples:
        >>> cj.SamplerConfig(num_steps=32).sigma_max
        80.0
    """

    num_steps: Annotated[int, Interval(ge=2, lt=2**20)] = 128
    """N, the diffusion steps; the denoiser is called 2N - 1 times by `heun`, N times by `dpm++`."""
    sigma_min: Positive = 0.002
    """Lowest noise level before zero."""
    sigma_max: Positive = 80.0
    """Noise level of the start."""
    rho: Annotated[float, Interval(ge=0.5, lt=math.inf)] = 7.0
    """Curvature of the noise schedule: the larger, the more steps at low noise."""
    S_churn: NonNegative = 0.0
    """Total churn: fresh noise raises sigma_n by gamma_n = min(S_churn / N, sqrt(2) - 1); 0 is deterministic."""
    S_min: NonNegative = 0.05
    """Lowest noise level at which to churn."""
    S_max: Annotated[float, Interval(ge=0.0, le=math.inf)] = 50.0
    """Highest noise level at which to churn."""
    S_noise: NonNegative = 1.003
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
        super().__post_init__()
        check_sigmas(self.sigma_min, self.sigma_max)
        check_levels(self.num_steps, self.sigma_min, self.sigma_max, self.rho)
        if self.S_min > self.S_max:
            raise RangeError("S_min", self.S_min, f"it must be at most S_max, {self.S_max:g}")
        if self.solver == "dpm++" and self.S_churn > 0:
            raise RangeError(
                "S_churn", self.S_churn, "it must be 0 with the solver dpm++, whose history allows no noise"
            )


def noise_levels(config: SamplerConfig) -> Float[Array, " levels"]:
    """sigma_0 > ... > sigma_{N-1} > sigma_N = 0 (`edm.karras_sigmas`)."""
    return karras_sigmas(config.num_steps, config.sigma_min, config.sigma_max, config.rho)
