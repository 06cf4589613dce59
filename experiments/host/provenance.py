"""Provenance of a run: the code, the libraries and the machine."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from experiments.host.devices import processor, visible_cores

MAX_DIFF = 200_000
"""Maximum number of stored characters of uncommitted changes."""

_PACKAGES = (
    "coda-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "chex",
    "distrax",
    "mujoco",
    "mujoco-mjx",
    "orbax-checkpoint",
    "flashbax",
    "numpy",
)


RANDOMNESS = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": "True",
    "jax_random_seed_offset": "0",
}
"""The settings of jax that decide all random numbers, with their usual values."""

_JAX_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_disable_jit", *RANDOMNESS)
_VARIABLES = (
    *("XLA_FLAGS", "JAX_PLATFORMS", "JAX_DISABLE_MOST_OPTIMIZATIONS"),
    *("NVIDIA_TF32_OVERRIDE", "TF_CUDNN_DETERMINISTIC", "OMP_NUM_THREADS"),
)


def provenance(num_devices: int) -> dict[str, Any]:
    """Describes this process; starts jax's backend.

    Args:
        num_devices: the number of devices over which the seeds are sharded.

    Returns:
        `commit` and `diff` (None outside of a checkout), `versions` by package, `python`, `platform`, `backend`,
        `device`, `matmul_precision` (of the networks; see `coda_jax.backend`), `processor`, `num_devices`,
        `visible_cores`, `numerics` and `command`.
    """
    return {
        "commit": _git("rev-parse", "HEAD"),
        "diff": _uncommitted_changes(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "matmul_precision": jax.config.jax_default_matmul_precision,  # pyright: ignore[reportAttributeAccessIssue]
        "processor": processor(),
        "num_devices": num_devices,
        "visible_cores": visible_cores(),
        "numerics": numerics(),
        "command": sys.argv,
    }


def numerics() -> dict[str, str | None]:
    """The settings of jax and the environment variables that change numbers; None for those that are not set."""
    values = {name: getattr(jax.config, name) for name in _JAX_SETTINGS}
    return {
        **{name: None if value is None else str(value) for name, value in values.items()},
        **{name: os.environ.get(name) for name in _VARIABLES},
    }


def unusual_randomness() -> dict[str, str]:
    """The settings of `RANDOMNESS` that differ from their usual values; empty in most processes."""
    values = {name: str(getattr(jax.config, name)) for name in RANDOMNESS}
    return {name: value for name, value in values.items() if value != RANDOMNESS[name]}


def _uncommitted_changes() -> str | None:
    diff = _git("diff", "HEAD")
    if diff is not None and len(diff) > MAX_DIFF:
        return f"{diff[:MAX_DIFF]}\n[{len(diff) - MAX_DIFF} further characters]"
    return diff


def _git(*command: str) -> str | None:
    """Runs a git command in the checkout of this file; None without git or without a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        return None
    return answer.stdout.rstrip("\n") if answer.returncode == 0 else None
