"""Comparing states of learners."""

from typing import Any

import jax
import numpy as np


def distance(a: Any, b: Any) -> float:
    """The largest absolute difference between the leaves of two pytrees."""
    return max(
        float(np.abs(np.asarray(x) - np.asarray(y)).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
