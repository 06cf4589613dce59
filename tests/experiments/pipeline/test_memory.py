"""Peak memory of the main job on a dataset of OG-MARL's size."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coda_jax.data.dataset import episodes_from_arrays
from coda_jax.data.vault import write_vault
from tests.vaults import TODAYS_OBS, recorded_cheetah

NUM_TRANSITIONS = 1_000_000
MAX_BYTES = 4e9


def write_large_vault(path: Path, num_transitions: int) -> None:
    """Writes 20 recorded episodes of HalfCheetah over and over again."""
    steps = recorded_cheetah([1000] * 20)
    repeats = num_transitions // len(steps["state"])
    state = np.tile(steps["state"], (repeats, 1))
    features = np.concatenate([state, np.zeros((len(state), 1), np.float32)], axis=1)
    episodes = episodes_from_arrays(
        state=state,
        obs=features[:, TODAYS_OBS],
        action=np.tile(steps["torque"].reshape(-1, 2, 3), (repeats, 1, 1)),
        reward=np.tile(steps["reward"], repeats),
        terminal=np.zeros(len(state)),
        truncation=np.tile(steps["is_end"], repeats),
    )
    assert write_vault(path, episodes)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the unit of ru_maxrss differs")
def test_a_run_with_a_million_transitions_stays_under_4_gb(tmp_path):
    vault = tmp_path / "large.vlt" / "one"
    write_large_vault(vault, NUM_TRANSITIONS)
    command = [sys.executable, "-m", "experiments.mamujoco", "--preset", "smoke", "--vault", str(vault)]
    process = subprocess.Popen(
        [*command, "--run-dir", str(tmp_path / "run")], env={**os.environ, "CODA_JAX_CACHE": str(tmp_path / "cache")}
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = 1024 * usage.ru_maxrss
    print(f"peak memory {peak / 1e9:.2f} GB")
    assert process.returncode == 0
    assert peak < MAX_BYTES
