"""The share of on-policy data that frees the agents of a polynomial game, in theory.

With a share alpha of perfect on-policy samples in the batch, the expected gradient of the stateless learner is

    g(theta) = (1 - alpha) g_data(theta) + alpha grad R(theta),

a polynomial whose coefficients are the data's moments. The agents follow g, projected onto the square. At alpha = 0
they are drawn to a point that the data decide; it moves with alpha, until it stops being stable. That alpha is the
*least share*. An actor whose Q term sees synthetic rows alone follows grad R, whatever the share. In double precision
on the host, and independent of the learner's code.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.polynomial import polynomial

from coda_jax.envs.polynomial import PolynomialGame
from experiments.games.theory import Marginals, expected_gradient, true_gradient

TOLERANCE = 1e-9


class Field(NamedTuple):
    """The expected gradient of all agents at a share of on-policy data."""

    game: PolynomialGame
    marginals: Marginals
    share: float

    def gradient(self, theta: Float[np.ndarray, " 2"]) -> Float[np.ndarray, " 2"]:
        """The expected gradient g at a joint policy."""
        return (1 - self.share) * expected_gradient(self.marginals, theta) + self.share * true_gradient(
            self.game, theta
        )

    def jacobian(self, theta: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "2 2"]:
        """Derivatives of g, `[agent of g, agent of theta]`; the data's part is diagonal."""
        c = np.asarray(self.game.coefficients, np.float64)
        hessian = np.array(
            [
                [
                    polynomial.polyval2d(*theta, polynomial.polyder(polynomial.polyder(c, axis=i), axis=j))
                    for j in (0, 1)
                ]
                for i in (0, 1)
            ]
        )
        data = [polynomial.polyval(t, polynomial.polyder(m, 2)) for t, m in zip(theta, self.marginals, strict=True)]
        return (1 - self.share) * np.diag(data) + self.share * hessian


def is_stable(field: Field, theta: Float[np.ndarray, " 2"]) -> bool:
    """Whether projected ascent returns to a stationary point after any small disturbance.

    At a border the gradient must point outward, or be that of a stable point inside; along the other directions the
    Jacobian's eigenvalues must have negative real parts.
    """
    held = _held(field, theta)
    inner = field.jacobian(theta)[np.ix_(~held, ~held)]
    return bool(np.all(np.linalg.eigvals(inner).real < -TOLERANCE)) if inner.size else True


def stationary_points(field: Field, grid_size: int = 9) -> Float[np.ndarray, "K 2"]:
    """All points of the square at which projected ascent stands still; Newton's method from a grid of starts."""
    axis = np.linspace(-1.0, 1.0, grid_size)
    found: list[np.ndarray] = []
    for start in np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2):
        for held in ((False, False), (True, False), (False, True), (True, True)):
            mask = np.array(held)
            if np.all(np.abs(start[mask]) == 1.0):
                point = _newton(field, start, mask)
                if point is not None and not any(np.allclose(point, other, atol=1e-6) for other in found):
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
    found = _newton(field, point, np.abs(point) == 1.0)
    if found is None or np.max(np.abs(found - point)) > 0.1 or not is_stable(field, found):
        return None
    return found


def _held(field: Field, theta: Float[np.ndarray, " 2"]) -> Bool[np.ndarray, " 2"]:
    """The agents that their gradient presses against a border."""
    return (np.abs(theta) == 1.0) & (np.sign(theta) * field.gradient(theta) > TOLERANCE)


def _newton(
    field: Field, start: Float[np.ndarray, " 2"], held: Bool[np.ndarray, " 2"]
) -> Float[np.ndarray, " 2"] | None:
    """A stationary point with the held agents fixed at their borders and zero gradient of the others."""
    theta = np.asarray(start, np.float64)
    for _ in range(60):
        gradient = field.gradient(theta)[~held]
        if np.all(np.abs(gradient) < TOLERANCE):
            break
        jacobian = field.jacobian(theta)[np.ix_(~held, ~held)]
        theta = theta.copy()
        theta[~held] -= np.linalg.lstsq(jacobian, gradient, rcond=None)[0]
        if np.any(np.abs(theta) > 2.0):
            return None
    is_inside = np.all(np.abs(theta) <= 1.0 + TOLERANCE)
    is_still = np.all(np.abs(field.gradient(theta)[~held]) < 1e-6)
    points_outward = np.all(np.sign(theta[held]) * field.gradient(theta)[held] > 0)
    return np.clip(theta, -1.0, 1.0) if is_inside and is_still and points_outward else None
