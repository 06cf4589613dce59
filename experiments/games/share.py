"""The share of on-policy data that frees the agents of a polynomial game, in theory.

With a share alpha of perfect on-policy samples in the batch, the expected gradient of the stateless learner is

    g(theta) = (1 - alpha) g_data(theta) + alpha grad R(theta),

a polynomial whose coefficients are the data's moments. The agents follow g, projected onto the square. At alpha = 0
they are drawn to a point that the data decide; it moves with alpha, until it stops being stable. That alpha is the
*least share*. An actor whose Q term sees synthetic rows alone follows grad R, whatever the share. In double precision
on the host, and independent of the learner's code.
"""

import itertools

import numpy as np
from jaxtyping import Bool, Float
from numpy.polynomial import polynomial

from coda_jax.envs.polynomial import DatasetConfig, PolynomialGame, cell_masses
from experiments.games.theory import Marginals, marginal_rewards

TOLERANCE = 1e-9
CELLS = 2_000
"""Cells a side of the quadrature of the data's moments."""


class Field:
    """The expected gradient of both agents at a share of on-policy data."""

    def __init__(self, game: PolynomialGame, marginals: Marginals, share: float):
        """Each agent's objective (1 - share) E[R] over the data + share R, as coefficients of x^j y^k."""
        objectives = [share * np.asarray(game.coefficients, np.float64) for _ in (0, 1)]
        objectives[0][:, 0] += (1 - share) * marginals[0]
        objectives[1][0, :] += (1 - share) * marginals[1]
        self._gradient = [polynomial.polyder(c, axis=agent) for agent, c in enumerate(objectives)]
        self._jacobian = [[polynomial.polyder(g, axis=other) for other in (0, 1)] for g in self._gradient]

    def gradient(self, theta: Float[np.ndarray, "*batch 2"]) -> Float[np.ndarray, "*batch 2"]:
        """The expected gradient g at joint policies."""
        return np.stack([evaluate(c, theta) for c in self._gradient], axis=-1)

    def jacobian(self, theta: Float[np.ndarray, "*batch 2"]) -> Float[np.ndarray, "*batch 2 2"]:
        """Derivatives of g, `[*batch, agent of g, agent of theta]`."""
        rows = [np.stack([evaluate(c, theta) for c in row], axis=-1) for row in self._jacobian]
        return np.stack(rows, axis=-2)


def evaluate(coefficients: Float[np.ndarray, "J K"], theta: Float[np.ndarray, "*batch 2"]) -> np.ndarray:
    """A polynomial of both actions at joint policies."""
    return np.asarray(polynomial.polyval2d(theta[..., 0], theta[..., 1], coefficients))


def is_stable(field: Field, theta: Float[np.ndarray, " 2"]) -> bool:
    """Whether projected ascent returns to a stationary point after any small disturbance.

    Agents that their gradient presses against a border stay there; along the other directions the Jacobian's
    eigenvalues must have negative real parts.
    """
    held = (np.abs(theta) == 1.0) & (np.sign(theta) * field.gradient(theta) > TOLERANCE)
    inner = field.jacobian(theta)[np.ix_(~held, ~held)]
    return bool(np.all(np.linalg.eigvals(inner).real < -TOLERANCE)) if inner.size else True


def stationary_points(field: Field, grid_size: int = 9) -> Float[np.ndarray, "K 2"]:
    """The points of the square at which projected ascent stands still; Newton's method from a grid of starts."""
    axis = np.linspace(-1.0, 1.0, grid_size)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    found: list[np.ndarray] = []
    for held in itertools.product((False, True), repeat=2):
        mask = np.array(held)
        starts = grid[np.all((np.abs(grid) == 1.0) | ~mask, axis=1)]
        for point in _newton(field, starts, mask):
            if not any(np.allclose(point, other, atol=1e-6) for other in found):
                found.append(point)
    return np.array(found).reshape(-1, 2)


def stable_points(field: Field) -> Float[np.ndarray, "K 2"]:
    """The stationary points at which the agents can end."""
    points = stationary_points(field)
    return points[[is_stable(field, point) for point in points]]


def least_share(game: PolynomialGame, marginals: Marginals, start: Float[np.ndarray, " 2"]) -> float | None:
    """The share of on-policy data above which agents that start at `start` are not held by the data's own point.

    The point to which ascent on the data alone leads is followed while alpha grows, until it is no longer stable; None
    if it is stable at every share, as an optimum of the game itself is.
    """
    point = ascend(Field(game, marginals, 0.0), start)
    low, high, step = 0.0, None, 0.01
    while high is None:
        share = min(low + step, 1.0)
        following = _follow(Field(game, marginals, share), point)
        if following is None:
            high = share
        elif share == 1.0:
            return None
        else:
            low, point = share, following
    while high - low > 1e-7:
        middle = (low + high) / 2
        following = _follow(Field(game, marginals, middle), point)
        if following is None:
            high = middle
        else:
            low, point = middle, following
    return (low + high) / 2


def exact_marginals(game: PolynomialGame, dataset: DatasetConfig) -> Marginals:
    """E[R(a^x, .)] and E[R(., a^y)] over a distribution of recorded joint actions, by quadrature."""
    if dataset.name == "point":
        return marginal_rewards(game, np.array([dataset.centre]))
    edges = np.linspace(-1.0, 1.0, CELLS + 1)
    masses, centres = cell_masses(dataset, edges), (edges[1:] + edges[:-1]) / 2
    c = np.asarray(game.coefficients, np.float64)
    x_moments, y_moments = (
        centres ** np.arange(c.shape[agent])[:, None] @ masses.sum(axis=1 - agent) for agent in (0, 1)
    )
    return c @ y_moments, x_moments @ c


def ascend(
    field: Field, start: Float[np.ndarray, " 2"], step: float = 0.01, num_steps: int = 20_000
) -> Float[np.ndarray, " 2"]:
    """The end of projected gradient ascent."""
    theta = np.asarray(start, np.float64)
    for _ in range(num_steps):
        following = np.clip(theta + step * field.gradient(theta), -1.0, 1.0)
        change, theta = np.max(np.abs(following - theta)), following
        if change < 1e-13:
            break
    return theta


def _follow(field: Field, point: Float[np.ndarray, " 2"]) -> Float[np.ndarray, " 2"] | None:
    """The stable stationary point near `point` with the same agents at their borders, if there is one."""
    found = _newton(field, point[None], np.abs(point) == 1.0)
    if not len(found) or np.max(np.abs(found[0] - point)) > 0.1 or not is_stable(field, found[0]):
        return None
    return found[0]


def _newton(field: Field, starts: Float[np.ndarray, "K 2"], held: Bool[np.ndarray, " 2"]) -> Float[np.ndarray, "M 2"]:
    """Stationary points with the held agents fixed at their borders and zero gradients of the others."""
    theta, free = starts.astype(np.float64), np.flatnonzero(~held)
    if free.size:
        for _ in range(60):
            inner = field.jacobian(theta)[:, free][:, :, free]
            step = np.linalg.pinv(inner) @ field.gradient(theta)[:, free, None]
            theta[:, free] = np.clip(theta[:, free] - step[..., 0], -2.0, 2.0)
    gradient = field.gradient(theta)
    is_inside = np.all(np.abs(theta) <= 1.0 + TOLERANCE, axis=1)
    is_still = np.all((np.abs(gradient) < 1e-6) | held, axis=1)
    points_outward = np.all((np.sign(theta) * gradient > 0) | ~held, axis=1)
    return np.clip(theta[is_inside & is_still & points_outward], -1.0, 1.0)
