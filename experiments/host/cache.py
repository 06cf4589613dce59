"""The cache folder: datasets, fitted denoisers and compiled programs, shared by all runs of a user.

The name of an entry is the hash of its configuration, the backend and versions (`cache_key`). One process at a time
builds an entry (`lock`). A damaged entry is renamed and built again (`quarantine`).
"""

import contextlib
import dataclasses
import enum
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.host.console import say, warn
from experiments.host.errors import UserError
from experiments.host.provenance import unusual_randomness


def cache_folder() -> Path:
    """Returns `CODA_JAX_CACHE`, else `coda-jax` in the user's cache folder; creates it if necessary.

    Raises:
        UserError: the folder cannot be created or written, or its disk is full.
    """
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("CODA_JAX_CACHE") or Path(user_cache, "coda-jax")).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(2**16))
            os.fsync(probe.fileno())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"the cache folder {folder} cannot be written ({reason}); "
            "free some space, or set CODA_JAX_CACHE to another folder"
        ) from error
    return folder


def enable_compilation_cache() -> None:
    """Stores all compiled programs in the cache folder; call it before the first compilation."""
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def lock(entry: Path, description: str) -> Iterator[None]:
    """Excludes other processes while an entry is built; the system releases the lock if this process dies.

    Args:
        entry: the path that is to be built; the lock is a file beside it.
        description: the entry in words, for the message of a process that has to wait.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    with entry.with_name(f"{entry.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that builds {description}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file releases the lock


def quarantine(entry: Path, reason: str) -> None:
    """Renames a damaged entry to `.NAME.damaged`, with a warning, so that it is built again; hold the entry's lock.

    Args:
        entry: the file or folder; an older one in quarantine is removed.
        reason: the damage in words, for the warning.
    """
    aside = entry.with_name(f".{entry.name}.damaged")
    if aside.is_dir():
        shutil.rmtree(aside)
    entry.replace(aside)
    warn(f"the cache entry {entry} is damaged ({reason}); it is built again, and kept as {aside.name}")


def key_of(config: Any) -> str:
    """Returns a hash of a configuration: twelve hexadecimal digits."""
    canonical = json.dumps(plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


FORMAT = 1
"""Version of the entries' format; raise it when a change of the code changes the content of entries."""


def cache_key(config: Any) -> str:
    """Returns the key of a cache entry: of its configuration, its format, the version of JAX and the backend.

    The backend and the version decide the last bits of an entry, and on an accelerator its kind (`backend_identity`).
    Entries with other random numbers than usual have other keys (`unusual_randomness`).
    """
    surroundings = {"format": FORMAT, "jax": jax.__version__, "backend": jax.default_backend()}
    return key_of({**surroundings, **unusual_randomness(), "config": config})


def backend_identity(precision: str | None = None) -> dict[str, Any]:
    """The part of the configuration of an entry by which results of an accelerator differ; empty on a CPU.

    Args:
        precision: of the matrix products, for entries that networks have a part in.
    """
    if jax.default_backend() == "cpu":
        return {}
    device = {"device": jax.devices()[0].device_kind}
    return device if precision is None else device | {"precision": precision}


def plain(config: Any) -> Any:
    """Converts a configuration into dicts, lists and scalars for YAML and JSON.

    Raises:
        TypeError: a value is not one of dataclasses, mappings, sequences, paths, enumerations and plain scalars.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(name): plain(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain(value) for value in config]
    if isinstance(config, enum.Enum):
        return config.name
    if isinstance(config, Path):
        return str(config)
    if config is None or isinstance(config, bool | int | float | str):
        return config
    raise TypeError(f"{config!r} of type {type(config).__name__} cannot be part of a configuration")


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested mapping to dotted names."""
    flattened: dict[str, Any] = {}
    for name, value in config.items():
        flattened |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flattened
