"""Regression test of speed: speeds relative to a yardstick, compared with the committed ones."""

import json
import time
from pathlib import Path

import numpy as np

from experiments.host.errors import UserError
from experiments.host.records import parse_mapping

BASELINE = Path("results", "benchmark.json")
"""The committed numbers."""


def yardstick() -> float:
    """The yardstick: numpy's products of two 1,024 x 1,024 single-precision matrices per second."""
    a = np.ones((1024, 1024), np.float32)

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(20):
            np.matmul(a, a)
        return time.perf_counter() - start

    return 20 / min(seconds() for _ in range(5))


def read_baseline(num_devices: int) -> dict[str, float]:
    """Returns the committed relative speeds.

    Raises:
        UserError: they are missing, or were measured with another number of devices.
    """
    try:
        fields = {"devices": int, "relative_speeds": dict[str, float]}
        record = parse_mapping(BASELINE, json.loads, fields, "restore it")
    except OSError as error:
        raise UserError(f"--gate needs the committed numbers of {BASELINE}; run it in the repository") from error
    if record["devices"] != num_devices:
        raise UserError(f"--gate compares with {record['devices']} devices, here are {num_devices}")
    return record["relative_speeds"]


def check_gate(speeds: dict[str, float], baseline: dict[str, float], tolerance: float) -> None:
    """Exits with status 1 and names the quantities that are slower than the tolerance allows, or missing."""
    fallen = [f"{name}: not measured" for name in baseline if name not in speeds]
    fallen += [
        f"{name}: {speed / baseline[name]:.2f} of the committed speed"
        for name, speed in speeds.items()
        if name in baseline and speed < (1.0 - tolerance) * baseline[name]
    ]
    if fallen:
        raise SystemExit("slower than committed: " + "; ".join(fallen))
