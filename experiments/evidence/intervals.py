"""Intervals over seeds: stratified bootstrap by rliable, and Student's t where seeds are paired.

A score is one seed's mean over its evaluation episodes; episodes never count as seeds. Seeds are
resampled within each dataset (a stratum). The random numbers are fixed, so that the same scores give the same interval.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from rliable import library, metrics
from scipy import stats

REPETITIONS = 2000
"""Bootstrap samples of an interval."""

CONFIDENCE = 0.95
"""Coverage of all intervals."""


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """The mean difference of two methods, by seeds that both have.

    bootstrap: percentile interval, too narrow for few seeds.
    student:   interval of Student's t, which accounts for their number and assumes Gaussian differences.
    """

    num_seeds: int
    mean: float
    bootstrap: Interval
    student: Interval

    @property
    def sign(self) -> int:
        """1 or -1 where both intervals lie on that side of zero, else 0."""
        intervals = (self.bootstrap, self.student)
        return int(all(i.low > 0 for i in intervals)) - int(all(i.high < 0 for i in intervals))


def mean(scores: Float[np.ndarray, "S D"]) -> float:
    """Mean over seeds and datasets."""
    return float(metrics.aggregate_mean(scores))


def interquartile_mean(scores: Float[np.ndarray, "S D"]) -> float:
    """Mean of the middle half of all scores."""
    return float(metrics.aggregate_iqm(scores))


def interval(scores: Float[np.ndarray, "S D"], statistic: Callable[[Float[np.ndarray, "S D"]], float]) -> Interval:
    """Percentile interval of a statistic of scores `[seeds, datasets]`, the datasets being strata."""
    with _fixed_randomness():
        point, bounds = library.get_interval_estimates(
            {"": np.asarray(scores, float)},
            lambda resampled: np.array([statistic(resampled)]),
            reps=REPETITIONS,
            confidence_interval_size=CONFIDENCE,
        )
    return Interval(float(point[""][0]), *map(float, bounds[""][:, 0]))


def differences(a: Mapping[int, float], b: Mapping[int, float]) -> dict[int, float]:
    """The difference a - b of each seed that both have."""
    return {seed: a[seed] - b[seed] for seed in sorted(set(a) & set(b))}


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """The difference a - b over the seeds both have; None with fewer than two of them."""
    values = np.array(list(differences(a, b).values()), float)
    if len(values) < 2:
        return None
    centre = float(values.mean())
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    student = Interval(centre, centre - reach, centre + reach)
    return Difference(len(values), centre, interval(values[:, None], mean), student)


@contextlib.contextmanager
def _fixed_randomness() -> Iterator[None]:
    """Seeds numpy's global generator, from which rliable draws even if given a `random_state`; restores it."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
