"""The files of a flashbax Vault in the layout of OG-MARL: opening, checking, and reading slice by slice.

A vault is a folder `{env}/{scenario}.vlt/{uid}` with one zarr array per leaf, of axes [1, T, ...]. Recordings of older
OG-MARL have one array per leaf and agent, such as `observations.agent_0`; they are read in the same way.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore

from coda_jax.types import TaskSpec

LAYOUT = {
    "observations": "AO",
    "actions": "AU",
    "rewards": "A",
    "terminals": "A",
    "truncations": "A",
    "infos.state": "S",
}
"""The leaves of OG-MARL with their dimensions after [1, T]; `coda_jax.types` defines the letters."""

FLAGS = {"terminals", "truncations"}
METADATA = "metadata.json"
ACTION_TOLERANCE = 1e-4
"""Rounding error by which an action may exceed [-1, 1]; such actions are clipped."""
REPAIR = "delete it, then build or download it again"
_VERSION = 1
"""The major version of the supported vault format."""
_ELEMENTS = 2**20
"""Numbers read at a time, or one stored chunk if that is more: few enough not to matter beside the data in memory."""


class VaultError(ValueError):
    """A vault cannot be used; the message is one line with error, location and remedy."""


class StoredLeaf(NamedTuple):
    """One leaf on disk."""

    arrays: tuple[tensorstore.TensorStore, ...]
    """The array, or one array per agent, in order."""
    is_per_agent: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """[1, T, ...], T is the capacity, not the number of steps; the axis of agents follows."""
        batch, capacity, *features = self.arrays[0].shape
        return (batch, capacity, len(self.arrays), *features) if self.is_per_agent else (batch, capacity, *features)

    def read(self, start: int, stop: int) -> np.ndarray:
        """The steps `start` to `stop - 1`, as `[stop - start, ...]` in the stored type."""
        futures = [array[0, start:stop].read() for array in self.arrays]
        parts = [future.result() for future in futures]
        return np.stack(parts, axis=1) if self.is_per_agent else parts[0]


class OpenVault(NamedTuple):
    """A vault whose files and shapes have been checked, but not its values."""

    path: Path
    length: int
    """T, the number of steps."""
    leaves: dict[str, StoredLeaf]

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions A, O, U and S."""
        num_agents, obs_dim = self.leaves["observations"].shape[2:]
        return {
            "A": num_agents,
            "O": obs_dim,
            "U": self.leaves["actions"].shape[3],
            "S": self.leaves["infos.state"].shape[2],
        }

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """The steps `start` to `stop - 1` of a leaf, as `[stop - start, ...]` in the stored type.

        Raises:
            VaultError: the files are damaged.
        """
        with as_vault_error(self.path):
            return self.leaves[name].read(start, stop)

    def slices(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """All steps of a leaf in order, as pairs (first step, values `[n, ...]`) of a few stored chunks each.

        Raises:
            VaultError: the files are damaged.
        """
        leaf = self.leaves[name]
        chunk = _chunk_shape(leaf.arrays[0])[1]
        step = chunk * max(1, _ELEMENTS // (chunk * int(np.prod(leaf.shape[2:]))))
        for start in range(0, self.length, step):
            yield start, self.read(name, start, min(start + step, self.length))

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Ends of episodes: `[T]` whether any agent is terminal, and `[T]` whether any agent is truncated.

        Raises:
            VaultError: the files are damaged, or a flag is NaN or infinite.
        """
        flags = {name: np.zeros(self.length, bool) for name in ("terminals", "truncations")}
        for name, flag in flags.items():
            for start, values in self.slices(name):
                check_values(self.path, name, start, values)
                flag[start : start + len(values)] = (values != 0).any(axis=1)
        return flags["terminals"], flags["truncations"]


def open_vault(path: Path) -> OpenVault:
    """Opens a vault: its folder, or the `.vlt` folder around it if that contains a single vault.

    Raises:
        VaultError: there is no vault or more than one; the vault is incomplete, corrupt or empty, lacks a leaf, or has
            inconsistent shapes.
    """
    with as_vault_error(path):
        path = _find_vault(path)
        leaves = _open_leaves(path, json.loads((path / METADATA).read_text()))
        length = int(_open_array(path, "vault_index").read().result()[0])
        if length <= 0:
            raise VaultError(f"vault {path} holds no steps; {REPAIR}")
        opened = OpenVault(path, length, leaves)
        check_shapes(opened, None)
        _check_chunks(opened)
    return opened


def _find_vault(path: Path) -> Path:
    """The folder with the vault's files: `path`, or the only vault inside; hidden folders are unfinished vaults."""
    if not path.exists():
        raise VaultError(f"vault {path} does not exist; give the path of a .vlt folder or of a vault inside one")
    if (path / METADATA).exists():
        return path
    inside = sorted(metadata.parent for metadata in path.glob(f"[!.]*/{METADATA}"))
    if len(inside) > 1:
        raise VaultError(f"{path} holds several vaults; give the path of one: {', '.join(map(str, inside))}")
    if not inside:
        raise VaultError(f"{path} is not a vault: no {METADATA} in it or one folder below; give a .vlt folder")
    return inside[0]


def _open_leaves(path: Path, metadata: Mapping[str, Any]) -> dict[str, StoredLeaf]:
    """Opens the leaves of the layout, stored as one array or as one array per agent."""
    if int(metadata["version"]) != _VERSION:
        version = metadata["version"]
        raise VaultError(f"vault {path} has format version {version}; convert it to version {_VERSION} with flashbax")
    found = set(_leaf_names(metadata["structure_shape"]))
    agent_leaves = {name: _leaves_per_agent(name, found) for name in LAYOUT if "A" in LAYOUT[name]}
    if missing := {name for name in LAYOUT if name not in found and not agent_leaves.get(name)}:
        missing_names, expected, has = (", ".join(sorted(names)) for names in (missing, set(LAYOUT), found))
        raise VaultError(
            f"vault {path} lacks {missing_names}: expected {expected}, found {has}; give a vault of OG-MARL"
        )
    leaves = {}
    for name in LAYOUT:
        parts = [name] if name in found else agent_leaves[name]
        leaves[name] = StoredLeaf(tuple(_open_array(path, f"{part}.") for part in parts), name not in found)
        if len({array.shape for array in leaves[name].arrays}) != 1:
            shapes = ", ".join(
                f"{part} {list(array.shape)}" for part, array in zip(parts, leaves[name].arrays, strict=True)
            )
            raise VaultError(f"vault {path}: agents differ in their shapes, {shapes}; pad them to one width")
    return leaves


def _leaf_names(structure: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The names of all leaves in the structure of a vault's metadata, such as `infos.state`."""
    for key, value in structure.items():
        if isinstance(value, Mapping):
            yield from _leaf_names(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _leaves_per_agent(name: str, found: set[str]) -> list[str]:
    """The leaves `{name}.{agent}`, ordered by the number in the agents' names."""

    def number(leaf: str) -> tuple[int, str]:
        digits = re.findall(r"\d+", leaf)
        return int(digits[-1]) if digits else 0, leaf

    return sorted((leaf for leaf in found if re.fullmatch(rf"{re.escape(name)}\.[^.]+", leaf)), key=number)


def _key_value_store(path: Path, prefix: str = "") -> dict[str, Any]:
    return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path.absolute()}/"}, "path": prefix}


def _open_array(path: Path, name: str) -> tensorstore.TensorStore:
    return tensorstore.open({"driver": "zarr", "kvstore": _key_value_store(path, f"{name}/")}, open=True).result()


def _chunk_shape(array: tensorstore.TensorStore) -> list[int]:
    return array.spec().to_json()["metadata"]["chunks"]


def check_shapes(opened: OpenVault, task: TaskSpec | None) -> None:
    """Raises a VaultError unless all leaves have the axes of the layout, with consistent sizes that fit the task."""
    sizes, source = {}, "the leaves before it"
    if task is not None:
        sizes = {"A": task.num_agents, "O": task.obs_dim, "U": task.action_dim, "S": task.state_dim}
        source = f"the sizes of task {task.name}"
    for name, letters in LAYOUT.items():
        batch, _, *features = opened.leaves[name].shape
        fits = batch == 1 and len(features) == len(letters)
        if not fits or any(sizes.setdefault(*dim) != dim[1] for dim in zip(letters, features, strict=True)):
            expected = ", ".join(f"{letter}={sizes[letter]}" if letter in sizes else letter for letter in letters)
            found = ", ".join(map(str, features))
            raise VaultError(
                f"vault {opened.path}: {name} has the shape [{batch}, T, {found}], but {source} make it "
                f"[1, T, {expected}]; choose another vault or task"
            )


def check_values(path: Path, name: str, start: int, values: np.ndarray) -> None:
    """Raises a VaultError at the first non-finite value, out-of-bounds action, or reward that differs between agents.

    Args:
        path: the vault, for the message.
        name: the leaf.
        start: the step of the first value.
        values: `[n, ...]` the values of n consecutive steps.
    """

    def first(bad: np.ndarray) -> str:
        step, *rest = np.argwhere(bad)[0].tolist()
        return str([0, start + step, *rest])

    if not (finite := is_finite(values)).all():
        value = values[~finite][0]
        kind = "NaN" if np.isnan(value) else f"{value:+}"
        beyond_single = ", infinite in single precision" if np.isfinite(value) else ""
        raise VaultError(f"vault {path}: {name}{first(~finite)} is {kind}{beyond_single}; remove that episode")
    if name == "actions" and (beyond := np.abs(values) > 1 + ACTION_TOLERANCE).any():
        raise VaultError(f"vault {path}: actions{first(beyond)} is outside [-1, 1]; rescale the actions")
    if name == "rewards" and (differs := values != values[:, :1]).any():
        raise VaultError(f"vault {path}: rewards{first(differs)} is not agent 0's; agents must share one reward")


def is_finite(values: np.ndarray) -> np.ndarray:
    """Whether each value is finite in single precision, in which it is used."""
    with np.errstate(over="ignore"):
        return np.isfinite(values.astype(np.float32, copy=False))


def _check_chunks(opened: OpenVault) -> None:
    """Raises a VaultError if a stored chunk is missing: it would be read as zeros.

    Only chunks of flags may be missing: all their flags are false.
    """
    store = tensorstore.KvStore.open(_key_value_store(opened.path)).result()
    stored = {key.decode() for key in store.list().result()}
    for name in set(LAYOUT) - FLAGS:
        for array in opened.leaves[name].arrays:
            chunk = _chunk_shape(array)
            counts = [-(-n // step) for n, step in zip((1, opened.length, *array.shape[2:]), chunk, strict=True)]
            prefix = array.spec().to_json()["kvstore"]["path"]
            for index in itertools.product(*map(range, counts)):
                if f"{prefix}{'.'.join(map(str, index))}" not in stored:
                    start = index[1] * chunk[1]
                    leaf = prefix.rstrip("./")
                    raise VaultError(f"vault {opened.path} is incomplete: {leaf} lacks steps from {start} on; {REPAIR}")


@contextlib.contextmanager
def as_vault_error(path: Path) -> Iterator[None]:
    """Converts all exceptions from reading damaged files into a VaultError of one line."""
    try:
        yield
    except VaultError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = first_line(error)
        raise VaultError(f"vault {path} is unreadable, incomplete or corrupt ({reason}); {REPAIR}") from error


def first_line(error: Exception) -> str:
    """The first line of an exception, without the description of the store that tensorstore appends."""
    lines = str(error).split(" [tensorstore_spec")[0].splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
