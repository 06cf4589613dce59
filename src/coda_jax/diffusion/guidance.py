"""Guidance of diffusion samples: policy scores (Eq. 14) and classifier-free guidance (Eq. 3).

A guide is a pure function of the denoised trajectory. The sampler adds lambda_n times its direction, and knows
nothing of policies or observations.
"""

from collections.abc import Callable
from typing import Any, Literal

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Denoiser = Callable[[Float[Array, "B H C"], Float[Array, ""]], Float[Array, "B H C"]]
"""(tau, sigma) -> D(tau; sigma), the expected clean trajectory given tau, noisy at level sigma."""

Guide = Callable[[Float[Array, "B H C"]], Float[Array, "B H C"]]
"""Denoised trajectory -> guidance direction for the noised trajectory; both in diffusion space."""

_REFERENCE_STEPS = 128
"""N_diff of the paper (App. F, Table 3): guidance scales refer to this number of steps."""


def guidance_schedule(kind: Literal["annealed", "constant"], num_steps: int) -> Float[Array, "N"]:
    """{lambda_n} of Algorithm 1 for a guidance scale of one, n = 0 ... N - 1.

    `annealed` is the schedule of policy-guided diffusion (Jackson et al. 2024): 1 - n/N + 0.3 sin(pi (n+1)/N), and
    zero on the last step, so that the last step returns the denoiser's estimate. `constant` is one on every step,
    including the last. Both are multiplied by 128/N, because the effect is a sum over the steps, which grows with N.
    """
    n = np.arange(num_steps)
    if kind == "annealed":
        shape = 1.0 - n / num_steps + 0.3 * np.sin(np.pi * (n + 1) / num_steps)
        shape[-1] = 0.0
    else:
        shape = np.ones(num_steps)
    return jnp.asarray(shape * (_REFERENCE_STEPS / num_steps), jnp.float32)


def score_guide(
    log_prob: Callable[[Float[Array, "B H *action"], Any], Float[Array, "B"]],
    decode: Callable[[Float[Array, "B H C"]], tuple[Float[Array, "B H *action"], Any]],
    action_channels: slice,
    *,
    space: Literal["action", "diffusion"] = "action",
    normalise: bool = True,
    eps: float = 1e-8,
) -> Guide:
    """The score of the joint policy at the denoised trajectory, with respect to the actions (Eq. 14; Alg. 1, l. 10-15).

    The log-probability of agent i depends on its own actions and its observations. Observations are held fixed, so no
    gradient flows through the policy, and the joint score is the stack of the agents' individual scores.

    Args:
      log_prob: (actions, observations) -> log pi(a | o), summed over the horizon and the agents.
      decode: denoised trajectory -> (actions, observations) in the environment's units (Alg. 1, l. 11). Observations
        are any pytree that `log_prob` accepts; decoding only the necessary channels saves time.
      action_channels: the channels of the flattened actions `[B, H, A*U]` among the C channels.
      space: `action` uses the gradient in action units in diffusion space, as in Algorithm 1; `diffusion` transforms it
        to diffusion space by the chain rule, with the derivative of `decode` (zero inside atoms and where clipped).
      normalise: whether to divide by the norm over horizon and action dimensions of each trajectory (Alg. 1, l. 15).
      eps: added to the norm; trajectories with zero gradient have direction zero.

    Returns:
      The guide; its direction is zero outside `action_channels`.
    """
    score = jax.grad(lambda action, observation: log_prob(action, observation).sum())

    def guide(denoised: Float[Array, "B H C"]) -> Float[Array, "B H C"]:
        if space == "action":
            action, observation = decode(denoised)
            g = score(action, observation).reshape(*denoised.shape[:-1], -1)
        else:
            action, vjp, observation = jax.vjp(decode, denoised, has_aux=True)
            g = vjp(score(action, observation))[0][..., action_channels]
        if normalise:
            g = g / (jnp.sqrt(jnp.sum(g**2, axis=(1, 2), keepdims=True)) + eps)
        return jnp.zeros_like(denoised).at[..., action_channels].set(g)

    return guide


def sum_of_guides(*guides: Guide) -> Guide:
    """The guide whose direction is the sum of the directions of others, each at its own length."""

    def guide(denoised: Float[Array, "B H C"]) -> Float[Array, "B H C"]:
        return sum((each(denoised) for each in guides), jnp.zeros_like(denoised))

    return guide


def gaussian_log_prob(action: Float[Array, "B H *action"], mu: Float[Array, "B H *action"]) -> Float[Array, "B"]:
    """Gaussian log N(a; mu, 1), summed over all but the first axis: the surrogate likelihood of a deterministic policy.

    It is the likelihood of Sec. 6.2.1; its gradient is mu - a (App. B).
    """
    return distrax.Independent(distrax.Normal(mu, 1.0), reinterpreted_batch_ndims=mu.ndim - 1).log_prob(action)


def classifier_free(conditional: Denoiser, unconditional: Denoiser, w: float | Float[Array, ""]) -> Denoiser:
    """The denoiser with the score (1 + w) conditional - w unconditional (Eq. 3); it calls both denoisers.

    The score (D - tau) / sigma^2 is affine in D and the weights add up to one, so the same combination applies to the
    denoised estimates. w = 0 gives the conditional denoiser.
    """

    def denoise(tau: Float[Array, "B H C"], sigma: Float[Array, ""]) -> Float[Array, "B H C"]:
        return (1.0 + w) * conditional(tau, sigma) - w * unconditional(tau, sigma)

    return denoise
