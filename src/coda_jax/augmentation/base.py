"""The protocol of an augmentation: where synthetic trajectories come from, and whether they are renewed."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.augmentation.adaptive_guidance import AdaptiveGuidance
from coda_jax.data.dataset import Dataset
from coda_jax.marl.learner import LearnerState
from coda_jax.types import PRNGKey, Trajectory

Samples = TypeVar("Samples")
"""Trajectories, or any pytree of arrays with one leading axis."""


class Augmentation(NamedTuple):
    """A source of synthetic trajectories.

    sample:     `(learner_state, dataset, prior, guidance, key, num) -> Trajectory [num, H, ...]` in the data's units.
                The dataset holds the recorded steps, the prior is any pytree (a fitted `Prior`, or `()`), guidance a
                traced scale, 0 for samples without guidance; the key is consumed; `num` is static.
    is_renewed: whether the trajectories are sampled anew every round (CODA), or once for the whole training.
    guidance:   lambda, the guidance scale of the trajectories that the learner sees, or the settings by which it is
                adapted; None where nothing is guided.
    prefix:     tokens of a trajectory, the first ones, whose actions guidance does not move.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> def replay(learner_state, dataset, prior, guidance, key, num):
        ...     return cj.sample_windows(dataset, key, num, horizon=1)
        >>> cj.Augmentation(replay).sample(None, dataset, (), 0.0, jax.random.key(1), 6).reward.shape
        (6, 1)
    """

    sample: Callable[[LearnerState, Dataset, Any, Float[Array, ""], PRNGKey, int], Trajectory]
    is_renewed: bool = True
    guidance: float | AdaptiveGuidance | None = None
    prefix: int = 0


def sample_in_chunks(
    sample: Callable[[PRNGKey, int], Samples],
    key: PRNGKey,
    num_samples: int,
    chunk_size: int,
    chunks_at_once: int = 1,
) -> Samples:
    """Draws `num_samples` trajectories in chunks of at most `chunk_size`, which should fit the processor's cache.

    The chunks are equal, ceil(num_samples / number of chunks), and those beyond `num_samples` are dropped.
    Under `vmap` over seeds a chunk holds that many trajectories *a seed*: divide `chunk_size` by the seeds of a device.

    Args:
        sample: (key, B) -> trajectories `[B, H, ...]` (or any pytree of arrays with that leading axis), B static.
        key: consumed; chunk c is `sample(jax.random.fold_in(key, c), B)`.
        num_samples: trajectories in all.
        chunk_size: the most trajectories of a chunk.
        chunks_at_once: chunks that are drawn together, by `vmap`; the trajectories do not depend on it.
    """
    num_chunks = math.ceil(num_samples / chunk_size)
    size = math.ceil(num_samples / num_chunks)
    batch_size = chunks_at_once if chunks_at_once > 1 else None
    chunks = jax.lax.map(
        lambda c: sample(jax.random.fold_in(key, c), size), jnp.arange(num_chunks), batch_size=batch_size
    )
    return jax.tree.map(lambda leaf: leaf.reshape(num_chunks * size, *leaf.shape[2:])[:num_samples], chunks)
