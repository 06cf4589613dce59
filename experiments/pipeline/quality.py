"""Quality of a run's synthetic trajectories, compared with held-out data and with shuffled data."""

import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np

from coda_jax.data.dataset import Dataset, sample_windows
from coda_jax.envs.base import Environment
from coda_jax.evaluation import sample_quality, shuffled_actions, shuffled_steps
from coda_jax.types import Trajectory
from experiments.evidence.naming import METHODS
from experiments.host.console import phase, print_table
from experiments.host.hosts import gathered

WINDOWS = 256
"""Maximum number of trajectories measured in a set."""

Quality = dict[str, dict[str, float]]
"""For each kind of trajectories, each error; all in standard deviations of the held-out data (`SampleQuality`)."""

_COLUMNS = {
    "guided, first round": "first round",
    "real, actions shuffled": "actions shuffled",
    "real, steps shuffled": "steps shuffled",
    "simulated": METHODS["simulated"],
}
"""Short headings of kinds of trajectories; the others are their own."""

_ROWS = {
    "feature_distance": "feature",
    "worst_feature_distance": "worst feature",
    "observation_error": "obs.",
    "dynamics_error": "dynamics",
    "reward_error": "reward",
    "optimism": "optimism",
}
"""Short names of the errors."""


def quality_meter(env: Environment, held_out: Dataset, num: int) -> Callable[[Mapping[str, Trajectory]], Quality]:
    """A meter of sets of `num` trajectories `[num, H, ...]` against held-out ones; it compiles once."""
    _, reference = _real_and_reference(held_out, num)
    measure = jax.jit(functools.partial(sample_quality, env))

    def meter(kinds: Mapping[str, Trajectory]) -> Quality:
        quality: Quality = {}
        with phase("measuring sample quality"):
            for name, trajectory in kinds.items():
                errors = jax.device_get(measure(trajectory, reference))
                quality[name] = {
                    "feature_distance": float(errors.feature_distance.mean()),
                    "worst_feature_distance": float(errors.feature_distance.max()),
                    "observation_error": float(errors.observation_error),
                    "dynamics_error": float(errors.dynamics_error),
                    "reward_error": float(errors.reward_error),
                    "optimism": float(errors.optimism),
                }
        return quality

    return meter


def real_trajectories(held_out: Dataset, num: int) -> dict[str, Trajectory]:
    """References for synthetic trajectories: `num` held-out ones, as they are and shuffled."""
    real, _ = _real_and_reference(held_out, num)
    return {
        "real": real,
        "real, actions shuffled": shuffled_actions(real),
        "real, steps shuffled": shuffled_steps(real),
    }


def _real_and_reference(held_out: Dataset, num: int) -> tuple[Trajectory, Trajectory]:
    draw = jax.jit(lambda held_out, key: sample_windows(held_out, key, num, len(held_out.offsets)))
    key_real, key_reference = jax.random.split(jax.random.key(0))
    return draw(held_out, key_real), draw(held_out, key_reference)


def spread_over_seeds(trajectory: Trajectory, num: int) -> Trajectory:
    """Takes trajectories `[num, H, ...]` out of `[seeds, M, H, ...]`, at even distances."""

    def take(leaf: jax.Array) -> np.ndarray:
        flat = gathered(leaf).reshape(-1, *leaf.shape[2:])
        return flat[np.linspace(0, len(flat) - 1, num).astype(int)]

    return jax.tree.map(take, trajectory)


def show_quality(quality: Quality) -> None:
    """Prints a row for each error, and a column for each kind of trajectories."""
    rows = [
        {"error": label, **{_COLUMNS.get(kind, kind): f"{errors[error]:z.3f}" for kind, errors in quality.items()}}
        for error, label in _ROWS.items()
        if all(error in errors for errors in quality.values())
    ]
    print_table("errors of samples, in standard deviations of held-out data", rows)
