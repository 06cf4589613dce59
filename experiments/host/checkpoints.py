"""Checkpoints of a training carry that survive SIGKILL at any time and detect flipped bits.

Processes that train together on several hosts call the same methods: each writes its part of the arrays to the shared
disk, and the first one the records.

    SERIES/steps/STEP/...    Orbax's files, one folder a step
    SERIES/STEP.json         the SHA-256 of each of its files, notes of the host, and a SHA-256 of the record itself

The record STEP.json is written atomically after the folder is complete, and removed before the folder. So a step with
a record was complete, and the checksums verify its files.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import orbax.checkpoint as ocp

from experiments.host.cache import quarantine
from experiments.host.console import warn
from experiments.host.errors import UserError
from experiments.host.files import digest, read_sealed, reserve, write_sealed
from experiments.host.hosts import barrier, from_first, is_first

Tree = TypeVar("Tree")

KEPT = 2
"""Checkpoints kept in a series: the latest, and a fallback in case it is damaged."""

_NONE, _DAMAGED = -1, -2

BYTES_PER_ARRAY = 8192
"""Upper estimate of the bytes that Orbax stores besides each array: its own file, metadata and sharding."""


@dataclasses.dataclass(frozen=True)
class Restored(Generic[Tree]):
    """A restored checkpoint."""

    step: int
    """The step at which it was saved."""
    tree: Tree
    """The carry, with the structure and shardings of the template."""
    notes: dict[str, Any]
    """The host's notes beside it."""


class DamagedSeriesError(UserError):
    """A series has checkpoints, but none is intact."""


class Checkpoints:
    """A series of checkpoints in its own folder, for one run at a time."""

    def __init__(self, folder: Path):
        """Opens the series, or begins it, and removes the unfinished files of a killed process."""
        self._folder = folder
        steps = folder.absolute() / "steps"
        if is_first():
            steps.mkdir(parents=True, exist_ok=True)
            for entry in steps.iterdir():
                if not self._record(entry.name).exists():
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        barrier()
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(steps, options=options)

    def save(self, step: int, tree: Any, notes: Mapping[str, Any] | None = None) -> None:
        """Saves a pytree of arrays and typed keys; returns when it is on disk.

        Args:
            step: larger than all previously saved steps.
            tree: the carry; it may be donated afterwards. Weak types are restored as strong types.
            notes: JSON-compatible values, such as the elapsed seconds.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        leaves = jax.tree.leaves(tree)
        if is_first():
            reserve(self._folder / "steps", sum(leaf.nbytes for leaf in leaves) + BYTES_PER_ARRAY * (len(leaves) + 32))
        barrier()
        self._manager.save(step, args=ocp.args.StandardSave(without_empty(tree)), force=True)
        self._manager.wait_until_finished()
        if is_first():
            record = {"notes": dict(notes or {}), "sha256": _digests(self._step_folder(step))}
            write_sealed(self._record(step), json.dumps(record, indent=1))
            for old in recorded_steps(self._folder)[:-KEPT]:
                self._drop(old)
        self._reload()

    def restore(self, template: Tree) -> Restored[Tree] | None:
        """Restores the latest intact checkpoint; returns None if there are no checkpoints.

        Args:
            template: a carry of the same structure, shapes, dtypes and devices.

        Raises:
            DamagedSeriesError: there are checkpoints but none is intact.
        """
        step = from_first(self._latest_intact() if is_first() else _NONE)
        if step == _NONE:
            return None
        if step == _DAMAGED:
            raise DamagedSeriesError(
                f"no checkpoint in {self._folder} is intact; delete the run folder to restart the run"
            )
        self._reload()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, without_empty(template))
        stored = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        return Restored(step, with_empty(template, stored), json.loads(read_sealed(self._record(step)))["notes"])

    def _latest_intact(self) -> int:
        """The latest intact step, after which the damaged ones are removed; `_NONE` or `_DAMAGED` without."""
        damaged = []
        for step in reversed(recorded_steps(self._folder)):
            if notes_if_intact(self._folder, step) is not None:
                for later in damaged:
                    warn(f"the checkpoint {self._step_folder(later)} is damaged; continuing from step {step}")
                    self._drop(later)
                return step
            damaged.append(step)
        return _DAMAGED if damaged else _NONE

    def close(self) -> None:
        """Stops the threads of Orbax."""
        self._manager.close()

    def _record(self, step: int | str) -> Path:
        return record_of(self._folder, step)

    def _step_folder(self, step: int) -> Path:
        return step_folder(self._folder, step)

    def _drop(self, step: int) -> None:
        self._record(step).unlink(missing_ok=True)
        if self._step_folder(step).exists():
            shutil.rmtree(self._step_folder(step))

    def _reload(self) -> None:
        """Lets all processes see which steps are left."""
        barrier()
        self._manager.reload()


def record_of(series: Path, step: int | str) -> Path:
    """The file that says what a checkpoint of a series holds, written last."""
    return series / f"{step}.json"


def step_folder(series: Path, step: int) -> Path:
    """The folder of a checkpoint."""
    return series / "steps" / str(step)


def recorded_steps(series: Path) -> list[int]:
    """The steps that have a record, in ascending order."""
    return sorted(int(record.stem) for record in series.glob("*.json") if record.stem.isdecimal())


def notes_if_intact(series: Path, step: int) -> dict[str, Any] | None:
    """The notes of a checkpoint; None if its files are not those that were written."""
    try:
        record = json.loads(read_sealed(record_of(series, step)))
        return record["notes"] if record["sha256"] == _digests(step_folder(series, step)) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def single_device_template(tree: Tree, device: Any) -> Tree:
    """The template of a pytree, of arrays or their shapes, that is restored to one device."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def open_cached(entry: Path, template: Tree) -> tuple[Checkpoints, Restored[Tree] | None]:
    """Opens the series of an entry of the cache, and restores its latest intact checkpoint; hold the entry's lock.

    A series without an intact checkpoint is quarantined with a warning, and an empty one takes its place.

    Args:
        entry: folder of the series.
        template: see `Checkpoints.restore`.
    """
    checkpoints = Checkpoints(entry)
    try:
        return checkpoints, checkpoints.restore(template)
    except DamagedSeriesError:
        checkpoints.close()
        barrier()
        if is_first():
            quarantine(entry, "no checkpoint in it is intact")
        return Checkpoints(entry), None


def without_empty(tree: Any) -> Any:
    """Replaces arrays of size zero, which Orbax cannot store, by None."""
    return jax.tree.map(lambda leaf: leaf if leaf.size else None, tree)


def with_empty(template: Tree, stored: Any) -> Tree:
    """What `without_empty` left out, from the template."""
    return jax.tree.map(lambda empty, leaf: empty if leaf is None else leaf, template, stored)


def _digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file in a folder, by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest(path) for path in files}
