"""A survey of a vault, slice by slice, also of one that cannot be used for training."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from coda_jax.data.vault_files import ACTION_TOLERANCE, OpenVault, is_finite


class Survey(NamedTuple):
    """Statistics of a vault."""

    returns: Float[np.ndarray, "N"]
    """Undiscounted return of each episode for agent 0; NaN if a reward of the episode is NaN."""
    lengths: Int[np.ndarray, "N"]
    """Number of steps of each episode."""
    num_terminal: int
    """Episodes whose last step is stored as terminal."""
    num_truncated: int
    """Episodes whose last step is stored as truncated."""
    num_nan: dict[str, int]
    """Count of NaN or infinite numbers in each leaf."""
    saturation: float
    """Fraction of the actions at a bound, |a| >= 1."""
    num_out_of_bounds: int
    """Number of actions outside the bounds by more than rounding."""
    num_unequal_rewards: int
    """Number of steps at which the agents' rewards differ."""


def survey(opened: OpenVault) -> Survey:
    """Counts the contents of a vault.

    Raises:
        VaultError: its files are damaged, or a flag of an episode's end is NaN or infinite.
    """
    terminal, truncation = opened.ends()
    is_last = terminal | truncation
    is_last[-1] = True
    bounds = np.flatnonzero(is_last) + 1
    episode = np.cumsum(is_last) - is_last  # the episode number of each step
    returns = np.zeros(len(bounds))
    num_nan, num_saturated, num_out, num_unequal_rewards = {}, 0, 0, 0
    for name in opened.leaves:
        num_nan[name] = 0
        for start, values in opened.slices(name):
            num_nan[name] += int(np.sum(~is_finite(values)))
            if name == "actions":
                num_saturated += int(np.sum(np.abs(values) >= 1.0))
                num_out += int(np.sum(np.abs(values) > 1.0 + ACTION_TOLERANCE))
            elif name == "rewards":
                num_unequal_rewards += int(np.sum((values != values[:, :1]).any(axis=1)))
                steps = slice(start, start + len(values))
                returns += np.bincount(episode[steps], values[:, 0].astype(np.float64), len(bounds))
    return Survey(
        returns=returns,
        lengths=np.diff(bounds, prepend=0),
        num_terminal=int(terminal.sum()),
        num_truncated=int(truncation.sum()),
        num_nan=num_nan,
        saturation=num_saturated / (opened.length * math.prod(opened.leaves["actions"].shape[2:])),
        num_out_of_bounds=num_out,
        num_unequal_rewards=num_unequal_rewards,
    )
