"""Episodes on disk, as flashbax Vaults in the layout of OG-MARL; own and downloaded vaults pass the same checks.

Vaults written here also contain a `card.json` with the statistics of the dataset and a checksum of every leaf. Vaults
are read slice by slice, so memory usage hardly exceeds the size of the returned arrays.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flashbax.buffers.trajectory_buffer import TrajectoryBufferState
from flashbax.vault import Vault
from jaxtyping import Bool, Float, Int

from coda_jax.data.dataset import Episodes, episodes_from_arrays, statistics
from coda_jax.data.vault_files import (
    METADATA,
    REPAIR,
    OpenVault,
    VaultError,
    as_vault_error,
    check_shapes,
    check_values,
    first_line,
    open_vault,
)
from coda_jax.types import TaskSpec

_CARD = "card.json"


class StateSource(NamedTuple):
    """Location of the global state in a vault: columns of a leaf whose axes after time are flattened."""

    leaf: str
    """`infos.state`, or `observations` if the state leaf is not the environment's state."""
    columns: Int[np.ndarray, "S"]


def write_vault(path: str | os.PathLike[str], episodes: Episodes, provenance: Mapping[str, Any] | None = None) -> bool:
    """Writes episodes as a vault, atomically; never changes an existing vault.

    The vault is written into a hidden folder beside `path` and renamed, so several processes may write at once: the
    first one wins, and the others drop their copies.

    Args:
        path: the vault's own folder, `{env}/{scenario}.vlt/{uid}`; its parents are made.
        episodes: to store; the reward and the ends of episodes are repeated for every agent, as OG-MARL does.
        provenance: how the episodes came about, in terms of JSON; kept in the card.

    Returns:
        True if `path` now contains these episodes, False if it already contained another vault.

    Raises:
        VaultError: the episodes contain NaN, infinity or actions outside [-1, 1].
        OSError: the folder is read-only, the disk is full, or flashbax cannot write to that path. No files remain.

    Examples:
        >>> import pathlib, tempfile
        >>> from numpy import array, zeros
        >>> episodes = cj.episodes_from_arrays(
        ...     state=zeros((4, 3)), obs=zeros((4, 2, 4)), action=zeros((4, 2, 1)), reward=zeros(4),
        ...     terminal=zeros(4), truncation=array([0, 0, 0, 1]),
        ... )
        >>> cj.write_vault(pathlib.Path(tempfile.mkdtemp()) / "mine.vlt" / "one", episodes)
        True
    """
    path = Path(path).absolute()
    leaves = _leaves_from_episodes(episodes)
    for name, leaf in leaves.items():
        check_values(path, name, 0, leaf[0])
    card = {
        "statistics": statistics(episodes),
        "provenance": dict(provenance or {}),
        "leaves": {name: _fingerprint_of(leaf) for name, leaf in leaves.items()},
    }
    if any(mark in str(path) for mark in "%?#"):  # flashbax builds a URL from the path, without quoting
        raise OSError(f"cannot write the vault {path} with '%', '?' or '#' in its path; choose another folder")
    unfinished = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_leaves(unfinished, leaves)
        (unfinished / _CARD).write_text(json.dumps(card, indent=2, allow_nan=False))
        return _rename_unless_exists(unfinished, path)
    except (OSError, ValueError) as error:  # tensorstore raises a ValueError for a full disk
        advice = "make its folder writable, free some space, or choose another folder"
        raise OSError(f"cannot write the vault {path} ({first_line(error)}); {advice}") from error
    finally:
        _remove(unfinished)


def _remove(folder: Path) -> None:
    """Removes a folder, repeatedly: after a failure, threads of tensorstore may still write and recreate it."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if not folder.exists():
            return


def read_vault(
    path: str | os.PathLike[str], task: TaskSpec | None = None, max_transitions: int | None = None
) -> Episodes:
    """Reads a vault and checks its files, checksums (if it has any), shapes and values.

    An episode ends after a step that is terminal or truncated for any agent; an unfinished last episode counts as
    truncated.

    Args:
        path: the vault's own folder, or the `.vlt` folder around it if that holds a single vault.
        task: sizes that the shapes must fit, if given.
        max_transitions: see `read_episodes`.

    Raises:
        VaultError: there is no vault or more than one; the vault is incomplete, corrupt or empty, lacks a leaf, or has
            inconsistent shapes or shapes of another task; it contains NaN, infinity, actions outside [-1, 1], or
            different rewards of the agents.
    """
    opened = open_vault(Path(path))
    check_shapes(opened, task)
    return read_episodes(opened, max_transitions)


def read_states_and_actions(
    opened: OpenVault, source: StateSource
) -> tuple[Float[np.ndarray, "T S"], Float[np.ndarray, "T A U"]]:
    """The states and actions of all steps, checked as by `read_episodes`, in float32.

    Raises:
        VaultError: the files are damaged, or a value is NaN, infinite or an action outside [-1, 1].
    """
    sizes = opened.sizes
    state = np.empty((opened.length, len(source.columns)), np.float32)
    action = np.empty((opened.length, sizes["A"], sizes["U"]), np.float32)
    for name in {source.leaf, "actions"}:
        for start, values in opened.slices(name):
            check_values(opened.path, name, start, values)
            if name == "actions":
                action[start : start + len(values)] = np.clip(values, -1, 1)
            else:
                flat = values.reshape(len(values), math.prod(values.shape[1:]))
                state[start : start + len(values)] = flat[:, source.columns]
    return state, action


def read_episodes(
    opened: OpenVault,
    max_transitions: int | None = None,
    state: StateSource | None = None,
    ends: tuple[Bool[np.ndarray, "T"], Bool[np.ndarray, "T"]] | None = None,
) -> Episodes:
    """Reads an open vault, or a part of it, as `read_vault`; the whole vault is checked in either case.

    Args:
        opened: the vault.
        max_transitions: upper limit on the number of steps, in whole episodes drawn at random with a fixed seed, in
            their order in the vault; no limit by default.
        state: location of the global state; `infos.state` by default.
        ends: terminals and truncations of the steps; those of the vault by default.

    Raises:
        VaultError: see `read_vault`; or `max_transitions` is less than the length of the first episode drawn.
    """
    terminal, truncation = opened.ends() if ends is None else ends
    kept = np.ones(opened.length, bool)
    if max_transitions is not None and max_transitions < opened.length:
        kept = _random_episodes(opened.path, terminal | truncation, max_transitions)
    sizes, num_kept = opened.sizes, int(kept.sum())
    source = state or StateSource("infos.state", np.arange(sizes["S"]))
    fields = {
        "observations": np.empty((num_kept, sizes["A"], sizes["O"]), np.float32),
        "actions": np.empty((num_kept, sizes["A"], sizes["U"]), np.float32),
        "rewards": np.empty(num_kept, np.float32),
    }
    states = np.empty((num_kept, len(source.columns)), np.float32)
    expected = _card_fingerprints(opened)
    for name in opened.leaves:
        fingerprint = _Fingerprint((1, opened.length, *opened.leaves[name].shape[2:]))
        filled = 0
        for start, values in opened.slices(name):
            if expected is not None:
                fingerprint.add(values)
            check_values(opened.path, name, start, values)
            chosen = values[kept[start : start + len(values)]]
            rows = slice(filled, filled + len(chosen))
            filled += len(chosen)
            if name == source.leaf:
                states[rows] = chosen.reshape(len(chosen), math.prod(chosen.shape[1:]))[:, source.columns]
            if name == "actions":
                np.clip(chosen, -1, 1, out=fields[name][rows], casting="same_kind")
            elif name == "rewards":
                fields[name][rows] = chosen[:, 0]
            elif name in fields:
                fields[name][rows] = chosen
        if expected is not None and fingerprint.digest() != expected[name]:
            raise VaultError(f"vault {opened.path} is corrupt: {name} is not what {_CARD} says was written; {REPAIR}")
    return episodes_from_arrays(
        state=states,
        obs=fields["observations"],
        action=fields["actions"],
        reward=fields["rewards"],
        terminal=terminal[kept],
        truncation=truncation[kept],
    )


def _random_episodes(path: Path, is_end: Bool[np.ndarray, "T"], max_transitions: int) -> Bool[np.ndarray, "T"]:
    """Selects random whole episodes with at most `max_transitions` steps in total, as a mask of steps.

    Episodes are drawn until the next one does not fit, so that their lengths do not matter for the choice.
    """
    ends = np.flatnonzero(is_end) + 1
    ends = ends if len(ends) and ends[-1] == len(is_end) else np.append(ends, len(is_end))
    lengths = np.diff(ends, prepend=0)
    order = np.random.default_rng(0).permutation(len(lengths))
    num_chosen = int(np.searchsorted(np.cumsum(lengths[order]), max_transitions, side="right"))
    if num_chosen == 0:
        raise VaultError(
            f"vault {path}: no {max_transitions} steps hold an episode, which has {lengths[order[0]]} here; "
            "raise the number of transitions"
        )
    is_chosen = np.zeros(len(lengths), bool)
    is_chosen[order[:num_chosen]] = True
    return np.repeat(is_chosen, lengths)


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


def _write_leaves(folder: Path, leaves: Mapping[str, np.ndarray]) -> None:
    """Writes a new vault with flashbax to `folder`, which must not exist."""
    experience: dict[str, Any] = {name: leaf for name, leaf in leaves.items() if name != "infos.state"}
    experience["infos"] = {"state": leaves["infos.state"]}
    length = leaves["infos.state"].shape[1]
    recording: Any = TrajectoryBufferState(
        experience=experience, current_index=jnp.asarray(length), is_full=jnp.asarray(True)
    )
    with contextlib.redirect_stdout(io.StringIO()):  # its constructor prints
        vault = Vault(".", experience, rel_dir=str(folder.parent), vault_uid=folder.name)
    # `write` starts an event loop, and the thread of a notebook already has one.
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(vault.write, recording).result()


def _rename_unless_exists(source: Path, target: Path) -> bool:
    """Renames a folder; returns False if the target is already a vault."""
    try:
        os.rename(source, target)
    except OSError:
        if (target / METADATA).exists():
            return False
        raise
    return True


class _Fingerprint:
    """Shape, type and checksum of a leaf, computed from consecutive slices."""

    def __init__(self, shape: tuple[int, ...]):
        self._shape, self._dtype, self._hash = shape, "", hashlib.sha256()

    def add(self, values: np.ndarray) -> None:
        self._dtype = values.dtype.name
        self._hash.update(np.ascontiguousarray(values).reshape(-1).data)

    def digest(self) -> dict[str, Any]:
        return {"shape": list(self._shape), "dtype": self._dtype, "sha256": self._hash.hexdigest()}


def _fingerprint_of(leaf: np.ndarray) -> dict[str, Any]:
    fingerprint = _Fingerprint(leaf.shape)
    fingerprint.add(leaf)
    return fingerprint.digest()


def vault_digest(opened: OpenVault) -> str:
    """SHA-256 of all values of a vault: the same for all copies of it, in files of any layout.

    Raises:
        VaultError: the files are damaged.
    """
    fingerprints = {}
    for name, leaf in sorted(opened.leaves.items()):
        fingerprint = _Fingerprint((1, opened.length, *leaf.shape[2:]))
        for _, values in opened.slices(name):
            fingerprint.add(values)
        fingerprints[name] = fingerprint.digest()
    return hashlib.sha256(json.dumps(fingerprints, sort_keys=True).encode()).hexdigest()


def _card_fingerprints(opened: OpenVault) -> dict[str, Any] | None:
    """The fingerprint of each leaf in the card; None for vaults without a card."""
    if not (opened.path / _CARD).exists():
        return None
    with as_vault_error(opened.path):
        leaves = json.loads((opened.path / _CARD).read_text())["leaves"]
        return {name: leaves[name] for name in opened.leaves}
