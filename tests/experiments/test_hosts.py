"""The main job in two processes: the numbers of one process with two devices, and how each process ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.host.records import write_record
from tests.fault_world import ROOT, TIMES, World, rounds_of

pytestmark = pytest.mark.slow

LIMIT = 900
"""Seconds after which a process that should have ended counts as hanging, on a busy machine."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run in one process with two devices, never interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", "2")
        return World(tmp_path_factory.mktemp("world"), rounds=6)


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def start(world: World, path: Path, number: int, port: int, *flags: str, **environment: str) -> subprocess.Popen[str]:
    """One of two processes with a device each, and a cache without the fit of the world."""
    command = [sys.executable, str(ROOT / "tests" / "experiments" / "drift_job.py"), *world.flags]
    place = ["--coordinator", f"localhost:{port}", "--num-processes", "2", "--process-id", str(number)]
    own = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        "CODA_JAX_CACHE": str(world.folder / "cache2"),
        "JAX_NUM_CPU_DEVICES": "1",
    }
    return subprocess.Popen(
        [*command, *place, "--run-dir", str(path), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **own, **environment},
    )


def start_both(world: World, path: Path, *flags: str) -> list[subprocess.Popen[str]]:
    port = free_port()
    return [start(world, path, number, port, *flags) for number in range(2)]


def numbers(path: Path) -> tuple[object, ...]:
    """All returns, losses and weights of a finished run, and its summary without the times."""
    summary = json.loads((path / "summary.json").read_text())
    with np.load(path / "policy.npz") as weights:
        arrays = {name: weights[name].tobytes() for name in weights.files}
    return (path / "metrics.csv").read_bytes(), {k: v for k, v in summary.items() if k not in TIMES}, arrays


def assert_one_line(process: subprocess.Popen[str], words: str) -> None:
    _, errors = process.communicate(timeout=LIMIT)
    lines = errors.splitlines()
    assert process.returncode == 2 and len(lines) == 1, (process.returncode, lines)
    assert lines[0].startswith("error: ") and words in lines[0], lines


def wait_for_round(processes: list[subprocess.Popen[str]], path: Path, number: int) -> None:
    until = time.monotonic() + LIMIT
    while rounds_of(path) < number and all(process.poll() is None for process in processes):
        assert time.monotonic() < until
        time.sleep(0.02)


def worker_of(process: subprocess.Popen[str]) -> int:
    """The process that a supervisor waits for."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def test_two_killed_processes_resume_to_the_numbers_of_one_process(world, tmp_path):
    path = tmp_path / "two"
    processes = start_both(world, path)
    wait_for_round(processes, path, 1)
    processes[1].kill()  # its worker ends with it
    assert_one_line(processes[0], "another process of this run has ended")
    processes[1].communicate()
    assert processes[1].returncode == -signal.SIGKILL
    interrupted = rounds_of(path)
    assert interrupted >= 1

    processes = start_both(world, path)
    wait_for_round(processes, path, interrupted + 1)
    os.kill(worker_of(processes[0]), signal.SIGKILL)
    assert_one_line(processes[0], "SIGKILL")
    assert_one_line(processes[1], "another process of this run has ended")

    processes = start_both(world, path)
    (printed, errors), (others, other_errors) = (process.communicate(timeout=LIMIT) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], (errors, other_errors)
    assert "return after" in " ".join(printed.split()) and others == "" and not errors + other_errors
    assert numbers(path) == numbers(world.whole)


def test_the_number_of_devices_must_stay(world):
    path = world.copy("begun")
    (path / "summary.json").unlink()
    provenance = json.loads((path / "provenance.json").read_text())
    del provenance["sha256"]
    write_record(path / "provenance.json", provenance | {"num_devices": 1})
    processes = start_both(world, path)
    assert_one_line(processes[0], "was begun on 1 devices, here are 2")
    assert_one_line(processes[1], "another process of this run has ended")


def test_processes_that_do_not_meet_say_so(world, tmp_path):
    port = free_port()
    alone = start(world, tmp_path / "run", 1, port, JOIN_SECONDS="5")
    assert_one_line(alone, "have not met within 5 s")
    waiting = start(world, tmp_path / "run", 0, port, JOIN_SECONDS="5")
    assert_one_line(waiting, "have not met within 5 s")
    with socket.create_server(("", port)):
        assert_one_line(start(world, tmp_path / "run", 0, port), "the port cannot be used here")
    assert not (tmp_path / "run").exists()
