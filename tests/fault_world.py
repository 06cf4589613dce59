"""The world of the fault audit: tiny runs on a task without physics, in this process or their own, and how they end."""

import contextlib
import csv
import io
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from coda_jax.data.vault import write_vault
from experiments import mamujoco
from experiments.pipeline import fitting, run
from tests.drift import DRIFT, drift_episodes

ROOT = Path(__file__).parents[1]
TINY = shlex.split(
    "--preset smoke --diffusion.num-steps 2 --denoiser.num-updates 4 --denoiser.batch-size 4 --denoiser.unet.width 4 "
    "--training.horizon 3 --training.batch-size 4 --training.mix-ratio 0.5 --training.updates-per-epoch 2 "
    "--training.epochs-per-round 1 --training.num-trajectories 4 "
    "--learner.critic-widths 8 --learner.policy-linear-width 4 --learner.policy-hidden-width 4"
)
Figures = dict[str, Any]
"""What an audit counts, and its `failures` in words."""
TIMES = ("wall_seconds", "updates_per_second", "trajectories_per_second")
"""Entries of the summary that differ between equal runs."""


class World:
    """A folder with a vault, a cache of compiled programs, and a run that was never interrupted."""

    def __init__(self, folder: Path, rounds: int = 20):
        """Makes all of it."""
        self.folder, self.cache, self.vault = folder, folder / "cache", folder / "drift" / "Replay.vlt" / "one"
        self.rng = random.Random(0)
        write_vault(self.vault, drift_episodes(20))
        self.flags = [*TINY, "--training.num-rounds", str(rounds), "--vault", str(self.vault)]
        self.whole = folder / "whole"
        done = self.process(self.whole).wait()
        assert done == 0, self.log(self.whole)

    def process(self, path: Path, *more: str, cache: Path | None = None) -> subprocess.Popen[bytes]:
        """Starts the main job in a process of its own, on a run folder at `path`."""
        command = [sys.executable, str(ROOT / "tests" / "experiments" / "drift_job.py"), *self.flags, *more]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        environment = {**os.environ, "PYTHONPATH": paths, "CODA_JAX_CACHE": str(cache or self.cache)}
        with self._log(path).open("wb") as log:
            return subprocess.Popen(
                [*command, "--run-dir", str(path)], stdout=subprocess.DEVNULL, stderr=log, env=environment
            )

    def log(self, path: Path) -> list[str]:
        """Lines that the last process on a run folder printed to stderr."""
        return self._log(path).read_text(errors="replace").splitlines()

    def _log(self, path: Path) -> Path:
        return self.folder / f"{path.name}.err"

    def here(self, path: Path, *more: str) -> tuple[int | str, list[str]]:
        """Runs the main job in this process; see `outcome`."""
        return outcome(lambda: mamujoco.main([*self.flags, *more, "--run-dir", str(path)]))

    def copy(self, name: str) -> Path:
        """A copy of the uninterrupted run."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return Path(shutil.copytree(self.whole, path))

    def is_whole(self, path: Path) -> bool:
        """Whether a finished run has the numbers of the uninterrupted one, bit for bit."""
        return numbers(path) == numbers(self.whole)


def numbers(path: Path) -> tuple[Any, ...]:
    """All numbers of a finished run: the bytes of its metrics, its summary, and the arrays of its last checkpoint."""
    summary = json.loads((path / "summary.json").read_text())
    last = max((path / "checkpoints" / "train" / "steps").iterdir(), key=lambda step: int(step.name))
    with ocp.PyTreeCheckpointer() as reader, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Orbax finds the sharding in the checkpoint
        tree = reader.restore(last.absolute() / "default")
    kept = {name: value for name, value in summary.items() if name not in TIMES}
    return (path / "metrics.csv").read_bytes(), json.dumps(kept), int(last.name), tuple(flatten(tree))


def flatten(tree: Any, name: str = "") -> Iterator[tuple[str, bytes]]:
    """The leaves of nested dicts and lists, by name, as bytes."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from flatten(value, f"{name}.{key}")
    elif tree is not None:
        is_key = jax.dtypes.issubdtype(tree.dtype, jax.dtypes.prng_key)
        yield name, np.asarray(jax.random.key_data(tree) if is_key else tree).tobytes()


def outcome(command: Callable[[], None]) -> tuple[int | str, list[str]]:
    """The exit status of a command, or "traceback", and its lines on stderr."""
    errors = io.StringIO()
    status: int | str = 0
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            command()
        except SystemExit as ended:
            status = int(ended.code or 0)
        except Exception:
            status = "traceback"
            traceback.print_exc()
    return status, errors.getvalue().splitlines()


def is_refusal(status: int | str, lines: list[str]) -> bool:
    """Whether a command ended with one line and exit status 2."""
    return status == 2 and len(lines) == 1 and lines[0].startswith("error: ")


def rounds_of(path: Path) -> int:
    """The last round in a run's metrics; -1 before the first."""
    with contextlib.suppress(OSError, LookupError, ValueError), (path / "metrics.csv").open() as file:
        return int(list(csv.reader(file))[-1][0])
    return -1


def damages(content: bytes, rng: random.Random, flips: int) -> Iterator[tuple[str, bytes]]:
    """A file's content with one bit flipped at random places, truncated, emptied, and replaced by other content."""
    for _ in range(flips if content else 0):
        position = rng.randrange(len(content))
        yield "flip", content[:position] + bytes([content[position] ^ 1 << rng.randrange(8)]) + content[position + 1 :]
    yield "truncated", content[: rng.randrange(len(content) or 1)]
    yield "empty", b""
    yield "noise", rng.randbytes(max(16, len(content)))
    yield "wrong type", b"[]"


@contextlib.contextmanager
def small_disk(folder: Path, size: str, *options: str) -> Iterator[Path | None]:
    """A tmpfs of a size, such as `300k`; None if this user cannot mount one."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def make_world() -> Iterator[World]:
    """The world of the audits, in a temporary folder; this process runs the main job without physics meanwhile."""
    before = run.mamujoco.make, fitting.UPDATES_PER_CHUNK, os.environ.get("CODA_JAX_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        run.mamujoco.make, fitting.UPDATES_PER_CHUNK = (lambda task: DRIFT), 2
        os.environ["CODA_JAX_CACHE"] = str(world.cache)
        try:
            yield world
        finally:
            run.mamujoco.make, fitting.UPDATES_PER_CHUNK = before[:2]
            os.environ.pop("CODA_JAX_CACHE")
            if before[2] is not None:
                os.environ["CODA_JAX_CACHE"] = before[2]
