"""Best responses under data (App. C), computed from the dataset's moments.

Agent x maximises E[R(a^x, a^y)] over the recorded a^y, a polynomial in a^x whose coefficients are the dataset's
moments (Eq. 16); likewise for y. In double precision on the host and independent of the learner's code, to test it.
"""

import numpy as np
from jaxtyping import Float
from numpy.polynomial import polynomial

from coda_jax.envs.polynomial import DatasetConfig, PolynomialGame, cell_masses
from coda_jax.marl.stateless_maddpg import StatelessMaddpgConfig

Marginals = tuple[np.ndarray, np.ndarray]
"""Coefficients, in rising powers, of E[R] as a function of a^x alone and of a^y alone."""


def marginal_rewards(game: PolynomialGame, actions: Float[np.ndarray, "N 2"]) -> Marginals:
    """E[R(a^x, .)] and E[R(., a^y)] over recorded joint actions."""
    c = np.asarray(game.coefficients, np.float64)
    x_moments, y_moments = (
        np.mean(actions[:, agent, None].astype(np.float64) ** np.arange(c.shape[agent]), axis=0) for agent in (0, 1)
    )
    return c @ y_moments, x_moments @ c


def expected_gradient(marginals: Marginals, theta: Float[np.ndarray, " 2"]) -> Float[np.ndarray, " 2"]:
    """Eq. 16-17 at the joint policy theta; Eq. 20 for the multiplication game, Eq. 22-23 for Twin Peaks."""
    return np.array([polynomial.polyval(t, polynomial.polyder(m)) for t, m in zip(theta, marginals, strict=True)])


def predicted_path(
    marginals: list[Marginals], start: Float[np.ndarray, " 2"], config: StatelessMaddpgConfig
) -> Float[np.ndarray, "T+1 2"]:
    """The policies of the learner that follows the expected gradient instead of a mini-batch's.

    Args:
        marginals: of each update's data.
        start: the first policy.
        config: the learner's step size and largest norm.
    """
    path = [np.asarray(start, np.float64)]
    for data in marginals:
        gradient = expected_gradient(data, path[-1])
        scale = config.learning_rate / max(1.0, np.linalg.norm(gradient) / config.max_grad_norm)
        path.append(np.clip(path[-1] + scale * gradient, -1.0, 1.0))
    return np.stack(path)


def twin_peaks_fixed_point(
    actions: Float[np.ndarray, "N 2"], A: float = 1.0, B: float = 4.0, C: float = 5.0
) -> Float[np.ndarray, " 2"]:
    """Eq. 24 for both agents: C mean / (2A + 2B (mean^2 + variance)) of the other agent's recorded actions."""
    other = actions[:, ::-1].astype(np.float64)
    return C * other.mean(axis=0) / (2 * A + 2 * B * (other.mean(axis=0) ** 2 + other.var(axis=0)))


def true_gradient(game: PolynomialGame, theta: Float[np.ndarray, "*batch 2"]) -> Float[np.ndarray, "*batch 2"]:
    """The gradient of R at joint policies."""
    c = np.asarray(game.coefficients, np.float64)
    parts = [polynomial.polyval2d(theta[..., 0], theta[..., 1], polynomial.polyder(c, axis=agent)) for agent in (0, 1)]
    return np.stack(parts, axis=-1)


def tilted_masses(
    dataset: DatasetConfig, edges: Float[np.ndarray, " edges"], policy: Float[np.ndarray, " 2"], guidance: float
) -> Float[np.ndarray, "cells cells"]:
    """Eq. 15 by quadrature, the probability of each cell: p_off(a) exp(lambda log N(a; policy, 1)), normalised."""
    centres = (edges[1:] + edges[:-1]) / 2
    tilt = [np.exp(-guidance * (centres - mu) ** 2 / 2) for mu in policy]
    masses = cell_masses(dataset, edges) * np.outer(*tilt)
    return masses / masses.sum()


def mean_and_spread(
    masses: Float[np.ndarray, "cells cells"], edges: Float[np.ndarray, " edges"]
) -> tuple[Float[np.ndarray, " 2"], float]:
    """Mean of a distribution over cells, and the root of its variance a dimension."""
    centres = (edges[1:] + edges[:-1]) / 2
    marginals = [masses.sum(axis=1), masses.sum(axis=0)]
    mean = np.array([marginal @ centres for marginal in marginals])
    second = np.array([marginal @ centres**2 for marginal in marginals])
    return mean, float(np.sqrt(np.mean(second - mean**2)))
