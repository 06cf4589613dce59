"""The choice of the guidance scale by `--guidance`: a number, or `auto` with the spread that it is to reach."""

from typing import Literal

from coda_jax.augmentation.adaptive_guidance import AdaptiveGuidance
from experiments.host.errors import UserError

AUTO = AdaptiveGuidance()
"""The defaults of `--guidance auto`."""

GUIDANCE = ("guidance", "guidance_target", "guidance_start")
"""The settings of the guidance scale."""


def guidance_scale(guidance: float | Literal["auto"], target: float, start: float) -> float | AdaptiveGuidance:
    """The scale lambda, or the settings by which it is adapted."""
    return AdaptiveGuidance(target=target, start=start) if guidance == "auto" else guidance


def check_guidance(guidance: float | Literal["auto"], target: float, start: float, noise: float = 0.0) -> None:
    """Refuses settings of `auto` beside a number, and a target that the noise on the actions exceeds by itself.

    Raises:
        UserError: names the setting.
    """
    if guidance != "auto":
        for name, value, usual in (("target", target, AUTO.target), ("start", start, AUTO.start)):
            if value != usual:
                raise UserError(f"--guidance-{name} is a setting of --guidance auto; leave it out with {guidance:g}")
    elif target <= noise:
        raise UserError(
            f"--guidance-target is {target:g}; it must be above --rollout-noise, {noise:g}, which adds to the spread"
        )
