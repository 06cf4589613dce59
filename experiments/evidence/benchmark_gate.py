"""Whether anything became slower: speeds by a yardstick, beside the committed ones."""

import json
import time
from pathlib import Path

import numpy as np

from experiments.host.errors import UserError

BASELINE = Path("results", "benchmark.json")
"""The committed numbers."""


def yardstick() -> float:
    """Products of two 1,024 x 1,024 single-precision matrices that numpy makes a second."""
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
        UserError: there are none, or they are of another number of devices.
    """
    try:
        record = json.loads(BASELINE.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--gate needs the committed numbers of {BASELINE}; run it where the repository is") from error
    if record["devices"] != num_devices:
        raise UserError(f"--gate compares with {record['devices']} devices, here are {num_devices}")
    return record["relative_speeds"]


def check_gate(speeds: dict[str, float], baseline: dict[str, float], tolerance: float) -> None:
    """Exits with status 1, naming them, if speeds fell by more than the tolerance against the yardstick or are gone."""
    fallen = [f"{what}: not measured" for what in baseline if what not in speeds]
    fallen += [
        f"{what}: {speed / baseline[what]:.2f} of the committed speed"
        for what, speed in speeds.items()
        if what in baseline and speed < (1.0 - tolerance) * baseline[what]
    ]
    if fallen:
        raise SystemExit("slower than committed: " + "; ".join(fallen))
