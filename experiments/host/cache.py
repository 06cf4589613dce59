"""The cache folder: datasets, fitted denoisers and compiled programs, shared by all runs of a user.

An entry is named by its content (`key_of` its configuration) and built under its `lock`, by one process at a time.
"""

import contextlib
import dataclasses
import enum
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.host.console import say
from experiments.host.errors import UserError


def cache_folder() -> Path:
    """Returns `CODA_JAX_CACHE`, else `coda-jax` in the user's cache folder; makes it where it is missing.

    Raises:
        UserError: if the folder cannot be made or written, or its disk is full.
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
            "make room there, or set CODA_JAX_CACHE to another folder"
        ) from error
    return folder


def enable_compilation_cache() -> None:
    """Keeps every compiled program in the cache folder; to be called before the first compilation."""
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def lock(entry: Path, what: str) -> Iterator[None]:
    """Keeps other processes out while an entry is built; the system releases it if this process dies.

    Args:
        entry: the path that is to be built; the lock is a file beside it.
        what: the entry in words, for the message of a process that has to wait.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    with entry.with_name(f"{entry.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that builds {what}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file releases the lock


def key_of(config: Any) -> str:
    """Returns a short name for the content of a configuration: twelve hexadecimal digits."""
    canonical = json.dumps(plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def plain(config: Any) -> Any:
    """Turns a configuration into dicts, lists and scalars, as YAML and JSON know them.

    Raises:
        TypeError: on anything but dataclasses, mappings, sequences, paths, enumerations and plain scalars.
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
    raise TypeError(f"{config!r} of type {type(config).__name__} does not belong into a configuration")


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted names."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
