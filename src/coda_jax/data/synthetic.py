"""Synthetic trajectories as episodes, for programs that read recorded data."""

import jax
import numpy as np

from coda_jax.data.dataset import Episodes, episodes_from_arrays
from coda_jax.types import Trajectory


def episodes_from_windows(trajectories: Trajectory) -> Episodes:
    """Trajectories `[N, H, ...]` as N episodes: each ends with its first true end, else by truncation at H steps.

    A trajectory's steps after a true end are left out.

    Examples:
        >>> trajectories = cj.Trajectory(
        ...     state=jnp.zeros((2, 3, 4)), obs=jnp.zeros((2, 3, 2, 1)), action=jnp.zeros((2, 3, 2, 1)),
        ...     reward=jnp.zeros((2, 3)), terminal=jnp.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        ... )
        >>> cj.episodes_from_windows(trajectories).bounds.tolist()
        [0, 3, 5]
    """
    steps = jax.tree.map(np.asarray, jax.device_get(trajectories))
    is_end = steps.terminal > 0.5
    kept = np.cumsum(is_end, axis=1) - is_end == 0
    truncation = np.zeros_like(is_end)
    truncation[:, -1] = ~is_end[:, -1]
    return episodes_from_arrays(
        state=steps.state[kept],
        obs=steps.obs[kept],
        action=steps.action[kept],
        reward=steps.reward[kept],
        terminal=is_end[kept],
        truncation=truncation[kept],
    )
