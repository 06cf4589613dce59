"""Choices that depend on the backend: the precision of matrix products, and how much is computed at once.

None of these sizes enters the random numbers, so a backend with other sizes draws the same data: sizes on a CPU keep
the working set in the cache, those on an accelerator fill it. The precision matters on accelerators only: by default,
products of float32 matrices use TF32 on recent GPUs and bfloat16 on TPUs; a CPU always uses float32.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

import jax

Precision = Literal["default", "high", "highest"]
"""Precision of float32 matrix products as in `jax.lax.Precision`; `highest` is float32 on every backend."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much a device computes at once.

    episodes:     episodes of a named dataset that are rolled out together.
    simulations:  environments that are simulated together by the measures of `evaluation`.
    trajectories: trajectories that are sampled together, if more than `CodaConfig.chunk_size`.
    windows:      windows of a mini-batch of the fit whose gradient is computed together.
    """

    episodes: int
    simulations: int
    trajectories: int
    windows: int


CPU = Sizes(episodes=16, simulations=64, trajectories=1, windows=4096)
ACCELERATOR = Sizes(episodes=1024, simulations=4096, trajectories=16_000, windows=20_000)


def sizes(backend: str | None = None) -> Sizes:
    """The sizes for a backend such as `cpu`, `gpu` or `tpu`; by default for that of this process, which it starts."""
    return CPU if (backend or jax.default_backend()) == "cpu" else ACCELERATOR


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Traces a function with float32 matrix products, whatever precision surrounds it.

    Examples:
        >>> import jax.numpy as jnp
        >>> with jax.default_matmul_precision("default"):
        ...     "HIGHEST" in str(jax.make_jaxpr(full_precision(jnp.dot))(jnp.ones(2), jnp.ones(2)))
        True
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return wrapped
