"""Times of functions of one process."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

REPEATS = 3

Work = Callable[[], Any]


def best_times(*works: Work) -> list[float]:
    """The best time of each function, in seconds; all run once to compile, then alternately."""
    for work in works:
        jax.block_until_ready(work())

    def timed(work: Work) -> float:
        start = time.perf_counter()
        jax.block_until_ready(work())
        return time.perf_counter() - start

    return np.min([[timed(work) for work in works] for _ in range(REPEATS)], axis=0).tolist()
