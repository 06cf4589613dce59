"""Linear dynamics, Gaussian data and linear policies, for which Eq. 15 has a closed form (docs/starts.md).

One state and one action, in double precision:

    s_0 = sqrt(P) e,  a_t = k s_t + u e (data),  s_{t+1} = A s_t + B a_t + q e,  pi(s) = kappa s + mu (policy),

every e standard normal. A trajectory (s_0, a_0, s_1, a_1, ...) of H steps is flat, `[2H]`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from coda_jax.diffusion.guidance import Denoiser

H = 3
P, A, B, Q = 1.0, 0.9, 0.4, 0.1
K, U = 0.3, 0.6


class Policy(NamedTuple):
    """pi(s) = kappa s + mu."""

    kappa: float
    mu: float


class Gaussian(NamedTuple):
    """mean: `[N]`; covariance: `[N, N]`."""

    mean: np.ndarray
    covariance: np.ndarray


def trajectories(
    policy: Policy, action_std: float, horizon: int = H, start: tuple[float, float] = (0.0, P)
) -> Gaussian:
    """Trajectories of a policy with noise on its actions, from starts of a mean and a variance."""
    affine = np.zeros((horizon, 2, 2 + 2 * horizon))  # in the noise; the last column is the mean
    s = np.zeros(2 + 2 * horizon)
    s[[0, -1]] = np.sqrt(start[1]), start[0]
    for t in range(horizon):
        a = policy.kappa * s
        a[[1 + 2 * t, -1]] += action_std, policy.mu
        affine[t] = s, a
        s = A * s + B * a
        s[2 + 2 * t] += Q
    flat = affine.reshape(2 * horizon, -1)
    return Gaussian(flat[:, -1], flat[:, :-1] @ flat[:, :-1].T)


BEHAVIOUR = Policy(K, 0.0)
DATA = trajectories(BEHAVIOUR, U)
STD = np.sqrt(np.diag(DATA.covariance))
"""Units of the diffusion space."""


def mismatch(policy: Policy, horizon: int = H) -> tuple[np.ndarray, np.ndarray]:
    """G `[H, 2H]` and c `[H]`, with a_t - pi(s_t) = (G x - c)_t."""
    rows = np.zeros((horizon, horizon, 2))
    rows[range(horizon), range(horizon)] = -policy.kappa, 1.0
    return rows.reshape(horizon, -1), np.full(horizon, policy.mu)


def tilted(law: Gaussian, policy: Policy, w: float) -> Gaussian:
    """Eq. 15: the law times prod_t N(a_t; pi(s_t), 1)^w, which is the law given G x + e / sqrt(w) = c."""
    rows, target = mismatch(policy, len(law.mean) // 2)
    gain = law.covariance @ rows.T @ np.linalg.inv(rows @ law.covariance @ rows.T + np.eye(len(rows)) / w)
    return Gaussian(law.mean - gain @ (rows @ law.mean - target), law.covariance - gain @ rows @ law.covariance)


def mismatch_rms(law: Gaussian, policy: Policy) -> float:
    """Root mean square of a_t - pi(s_t), over steps."""
    rows, target = mismatch(policy, len(law.mean) // 2)
    squared = (rows @ law.mean - target) ** 2 + np.diag(rows @ law.covariance @ rows.T)
    return float(np.sqrt(squared.mean()))


def tilted_to(law: Gaussian, policy: Policy, rms: float) -> Gaussian:
    """The tilt whose mismatch has this root mean square, by bisection over log w."""
    low, high = 1e-6, 1e9
    for _ in range(100):
        w = np.sqrt(low * high)
        low, high = (w, high) if mismatch_rms(tilted(law, policy, w), policy) > rms else (low, w)
    return tilted(law, policy, high)


def given_start(law: Gaussian, start: float = 0.0) -> tuple[np.ndarray, Gaussian]:
    """Regression coefficients `[2H]` of all entries on s_0, and the law given s_0."""
    gain = law.covariance[:, 0] / law.covariance[0, 0]
    covariance = law.covariance - np.outer(gain, gain) * law.covariance[0, 0]
    return gain, Gaussian(law.mean + gain * (start - law.mean[0]), covariance)


class Spectrum(NamedTuple):
    """A Gaussian in the units of the diffusion space: its mean, and the eigenvalues and vectors of its covariance."""

    mean: Float[Array, " N"]
    values: Float[Array, " N"]
    basis: Float[Array, "N N"]


def spectrum(law: Gaussian) -> Spectrum:
    """The spectrum of a law of trajectories."""
    values, basis = np.linalg.eigh(law.covariance / np.outer(STD, STD))
    return Spectrum(*(jnp.asarray(x, jnp.float32) for x in (law.mean / STD, np.maximum(values, 0.0), basis)))


def ideal_denoiser(law: Spectrum) -> Denoiser:
    """E[z | z + sigma e] for z of this law, as a function of `[B, H, 2]`."""

    def denoise(tau: Float[Array, "B H C"], sigma: Float[Array, ""]) -> Float[Array, "B H C"]:
        along = (tau.reshape(len(tau), -1) - law.mean[None]) @ law.basis
        shrunk = along * (law.values / (law.values + sigma**2))[None]
        return (law.mean[None] + shrunk @ law.basis.T).reshape(tau.shape)

    return denoise
