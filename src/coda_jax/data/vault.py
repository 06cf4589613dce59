"""Episodes on disk, as flashbax Vaults in the layout of OG-MARL; our own and downloaded ones pass the same checks.

A vault is a folder `{env}/{scenario}.vlt/{uid}`, holding one zarr array a leaf with the axes [1, T, ...]. Vaults
written here also hold a `card.json`: the dataset's statistics, and a checksum of every leaf.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore
from flashbax.buffers.trajectory_buffer import TrajectoryBufferState
from flashbax.vault import Vault

from coda_jax.data.dataset import Episodes, episodes_from_arrays, statistics
from coda_jax.types import TaskSpec

_LAYOUT = {
    "observations": "AO",
    "actions": "AU",
    "rewards": "A",
    "terminals": "A",
    "truncations": "A",
    "infos.state": "S",
}
"""The leaves of OG-MARL, and the dimensions of each after [1, T], in the letters of `coda_jax.types`."""

_FLAGS = {"terminals", "truncations"}
_METADATA = "metadata.json"
_CARD = "card.json"
_VERSION = 1
"""The major version of the vaults that can be read."""
_ACTION_TOLERANCE = 1e-4
"""By how much an action may exceed [-1, 1], from rounding; it is clipped."""
_REPAIR = "delete it, then build or download it again"


class VaultError(ValueError):
    """A vault that cannot be used; the message is one line: what is wrong, where, and what to do."""


def write_vault(path: str | os.PathLike[str], episodes: Episodes, provenance: Mapping[str, Any] | None = None) -> bool:
    """Stores episodes as a vault, whole or not at all; never changes a vault that exists.

    The vault is written into a hidden folder beside `path` and renamed, so several processes may write at once: the
    first one wins, and the others drop what they wrote.

    Args:
        path: the vault's own folder, `{env}/{scenario}.vlt/{uid}`; its parents are made.
        episodes: what to store; the reward and the ends of episodes are repeated for every agent, as OG-MARL does.
        provenance: how the episodes came about, in terms of JSON; kept in the card.

    Returns:
        Whether these episodes are what `path` holds now: False if another vault was there first.

    Raises:
        VaultError: NaNs, infinities or actions outside [-1, 1] in the episodes.
        OSError: the folder is read-only or full, or its name is one flashbax cannot write to. Nothing is left behind.
    """
    path = Path(path).absolute()
    leaves = _leaves_from_episodes(episodes)
    _check_values(path, leaves)
    card = {
        "statistics": statistics(episodes),
        "provenance": dict(provenance or {}),
        "leaves": {name: _fingerprint(leaf) for name, leaf in leaves.items()},
    }
    if any(mark in str(path) for mark in "%?#"):  # flashbax makes a URL of it, without quoting
        raise OSError(f"cannot write the vault {path} with '%', '?' or '#' in its path; choose another folder")
    unfinished = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_leaves(unfinished, leaves)
        (unfinished / _CARD).write_text(json.dumps(card, indent=2, allow_nan=False))
        return _rename_unless_exists(unfinished, path)
    except (OSError, ValueError) as fault:  # tensorstore raises a ValueError for a full disk
        advice = "make its folder writable, free some space, or choose another folder"
        raise OSError(f"cannot write the vault {path} ({_first_line(fault)}); {advice}") from fault
    finally:
        _remove(unfinished)


def _remove(folder: Path) -> None:
    """Removes a folder in which threads of tensorstore may still be writing after a failure, and making it anew."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if not folder.exists():
            return


def read_vault(path: str | os.PathLike[str], task: TaskSpec | None = None) -> Episodes:
    """Reads a vault and checks all of it: its files, checksums where it has them, shapes and values.

    An episode ends after a step that is terminal or truncated for any agent; an unfinished last one counts as
    truncated.

    Args:
        path: the vault's own folder, or the `.vlt` folder around it if that holds a single vault.
        task: what the shapes must fit, if given.

    Raises:
        VaultError: there is no vault, or several; it is incomplete or corrupt, is empty, lacks a leaf, has shapes that
            contradict each other or the task; holds NaNs, infinities, actions outside [-1, 1], or agents whose rewards
            differ.
    """
    path = Path(path)
    with _one_clear_line(path):
        path = _find_vault(path)
        _check_metadata(path, json.loads((path / _METADATA).read_text()))
        length = int(_open_array(path, "vault_index").read().result()[0])
        if length <= 0:
            raise VaultError(f"vault {path} holds no steps; {_REPAIR}")
        arrays = {name: _open_array(path, f"{name}.") for name in _LAYOUT}
        _check_shapes(path, {name: array.shape for name, array in arrays.items()}, task)
        _check_chunks(path, arrays, length)
        leaves = {name: array[:, :length].read().result() for name, array in arrays.items()}
        if (path / _CARD).exists():
            _check_fingerprints(path, leaves, json.loads((path / _CARD).read_text())["leaves"])
    _check_values(path, leaves)
    return _episodes_from_leaves(leaves)


def _leaves_from_episodes(episodes: Episodes) -> dict[str, np.ndarray]:
    num_agents = episodes.action.shape[1]

    def for_every_agent(x: np.ndarray) -> np.ndarray:
        return np.repeat(x[None, :, None], num_agents, axis=2)

    return {
        "observations": episodes.obs[None],
        "actions": episodes.action[None],
        "rewards": for_every_agent(episodes.reward),
        "terminals": for_every_agent(episodes.terminal != 0),
        "truncations": for_every_agent(episodes.truncation != 0),
        "infos.state": episodes.state[None],
    }


def _episodes_from_leaves(leaves: Mapping[str, np.ndarray]) -> Episodes:
    return episodes_from_arrays(
        state=leaves["infos.state"][0],
        obs=leaves["observations"][0],
        action=np.clip(leaves["actions"][0], -1, 1),
        reward=leaves["rewards"][0, :, 0],
        terminal=(leaves["terminals"][0] != 0).any(axis=-1),
        truncation=(leaves["truncations"][0] != 0).any(axis=-1),
    )


def _write_leaves(folder: Path, leaves: Mapping[str, np.ndarray]) -> None:
    """Lets flashbax make a new vault of `folder`, which must not exist."""
    experience: dict[str, Any] = {name: leaf for name, leaf in leaves.items() if name != "infos.state"}
    experience["infos"] = {"state": leaves["infos.state"]}
    length = leaves["infos.state"].shape[1]
    recording: Any = TrajectoryBufferState(
        experience=experience, current_index=jnp.asarray(length), is_full=jnp.asarray(True)
    )
    with contextlib.redirect_stdout(io.StringIO()):  # its constructor prints
        vault = Vault(".", experience, rel_dir=str(folder.parent), vault_uid=folder.name)
    with ThreadPoolExecutor(max_workers=1) as pool:  # `write` starts an event loop; a notebook's thread has one already
        pool.submit(vault.write, recording).result()


def _rename_unless_exists(source: Path, target: Path) -> bool:
    """Renames a folder; False if a vault stands at the target."""
    try:
        os.rename(source, target)
    except OSError:
        if (target / _METADATA).exists():
            return False
        raise
    return True


def _find_vault(path: Path) -> Path:
    """The folder with the vault's files: `path`, or the only one inside; hidden ones are still being written."""
    if not path.exists():
        raise VaultError(f"vault {path} does not exist; give the path of a .vlt folder or of a vault inside one")
    if (path / _METADATA).exists():
        return path
    inside = sorted(metadata.parent for metadata in path.glob(f"[!.]*/{_METADATA}"))
    if len(inside) > 1:
        raise VaultError(f"{path} holds several vaults; give the path of one: {', '.join(map(str, inside))}")
    if not inside:
        raise VaultError(f"{path} is not a vault: no {_METADATA} in it or one folder below; give a .vlt folder")
    return inside[0]


def _check_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raises unless the vault is of a version that can be read, and lists the leaves of the layout."""
    if int(metadata["version"]) != _VERSION:
        version = metadata["version"]
        raise VaultError(f"vault {path} has format version {version}; convert it to version {_VERSION} with flashbax")
    found = set(_leaf_names(metadata["structure_shape"]))
    if missing := set(_LAYOUT) - found:
        lacks, expected, found = (", ".join(sorted(names)) for names in (missing, set(_LAYOUT), found))
        raise VaultError(f"vault {path} lacks {lacks}: expected {expected}, found {found}; give a vault of OG-MARL")


def _leaf_names(structure: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The names of all leaves in a vault's description of its structure, such as `infos.state`."""
    for key, value in structure.items():
        if isinstance(value, Mapping):
            yield from _leaf_names(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _key_value_store(path: Path, prefix: str = "") -> dict[str, Any]:
    return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path.absolute()}/"}, "path": prefix}


def _open_array(path: Path, name: str) -> tensorstore.TensorStore:
    return tensorstore.open({"driver": "zarr", "kvstore": _key_value_store(path, f"{name}/")}, open=True).result()


def _check_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]], task: TaskSpec | None) -> None:
    """Raises unless each leaf has the axes of the layout, with sizes that agree with the other leaves and the task."""
    sizes, whose = {}, "the leaves before it"
    if task is not None:
        sizes = {"A": task.num_agents, "O": task.obs_dim, "U": task.action_dim, "S": task.state_dim}
        whose = f"the sizes of task {task.name}"
    for name, letters in _LAYOUT.items():
        batch, _, *features = shapes[name]
        fits = batch == 1 and len(features) == len(letters)
        if not fits or any(sizes.setdefault(*dim) != dim[1] for dim in zip(letters, features, strict=True)):
            expected = ", ".join(f"{letter}={sizes[letter]}" if letter in sizes else letter for letter in letters)
            found = ", ".join(map(str, features))
            raise VaultError(
                f"vault {path}: {name} has the shape [{batch}, T, {found}], but {whose} make it "
                f"[1, T, {expected}]; choose another vault or task"
            )


def _check_chunks(path: Path, arrays: Mapping[str, tensorstore.TensorStore], length: int) -> None:
    """Raises if a stored chunk is missing: it would silently read as zeros.

    Only chunks of flags may be missing, as long stretches in which no episode ends.
    """
    stored = {key.decode() for key in tensorstore.KvStore.open(_key_value_store(path)).result().list().result()}
    for name in set(_LAYOUT) - _FLAGS:
        chunk = arrays[name].spec().to_json()["metadata"]["chunks"]
        counts = [-(-size // step) for size, step in zip((1, length, *arrays[name].shape[2:]), chunk, strict=True)]
        for index in itertools.product(*map(range, counts)):
            if f"{name}./{'.'.join(map(str, index))}" not in stored:
                start = index[1] * chunk[1]
                raise VaultError(f"vault {path} is incomplete: {name} lacks steps from {start} on; {_REPAIR}")


def _check_values(path: Path, leaves: Mapping[str, np.ndarray]) -> None:
    """Raises for the first value that is not finite, action out of bounds, or reward that differs between agents."""

    def first(bad: np.ndarray) -> str:
        return str(np.argwhere(bad)[0].tolist())

    for name, leaf in leaves.items():
        if not (finite := np.isfinite(leaf)).all():
            raise VaultError(f"vault {path}: {name}{first(~finite)} is NaN or infinite; remove that episode")
    beyond = np.abs(leaves["actions"]) > 1 + _ACTION_TOLERANCE
    if beyond.any():
        raise VaultError(f"vault {path}: actions{first(beyond)} is outside [-1, 1]; rescale the actions")
    differs = leaves["rewards"] != leaves["rewards"][..., :1]
    if differs.any():
        raise VaultError(f"vault {path}: rewards{first(differs)} is not agent 0's; agents must share one reward")


def _fingerprint(leaf: np.ndarray) -> dict[str, Any]:
    data = np.ascontiguousarray(leaf).reshape(-1).data
    return {"shape": list(leaf.shape), "dtype": leaf.dtype.name, "sha256": hashlib.sha256(data).hexdigest()}


def _check_fingerprints(path: Path, leaves: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> None:
    for name, leaf in leaves.items():
        if _fingerprint(leaf) != expected[name]:
            raise VaultError(f"vault {path} is corrupt: {name} is not what {_CARD} says was written; {_REPAIR}")


@contextlib.contextmanager
def _one_clear_line(path: Path) -> Iterator[None]:
    """Turns the many ways in which reading damaged files fails into a VaultError of one line."""
    try:
        yield
    except VaultError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        reason = _first_line(fault)
        raise VaultError(f"vault {path} is unreadable, incomplete or corrupt ({reason}); {_REPAIR}") from fault


def _first_line(fault: Exception) -> str:
    """What went wrong, without the description of the whole store that tensorstore appends."""
    lines = str(fault).split(" [tensorstore_spec")[0].splitlines()
    return f"{type(fault).__name__}: {lines[0][:200]}" if lines else type(fault).__name__
