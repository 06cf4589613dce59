"""The fields of the main job's `summary.json`, with their types in JSON."""

from typing import Any, Literal

SUMMARY: dict[str, Any] = {
    "task": str,
    "dataset": str,
    "augmentation": str,
    "guidance": float | Literal["auto"],
    "updates": int,
    "num_seeds": int,
    "seeds": list[int],
    "returns_per_seed": list[float],
    "mean": float,
    "standard_error": float | None,
    "sample_quality": dict[str, dict[str, float]] | None,
    "dataset_mean_return": float,
    "dataset_best_return": float,
    "wall_seconds": dict[str, float],
}
"""All that is read of a summary; older runs may have fewer fields besides."""
