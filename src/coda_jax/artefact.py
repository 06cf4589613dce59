"""Artefacts: arrays and a description in one `.npz`, which `numpy.load` reads without pickle and without this package.

The description is JSON, the entry `description` of the file; it names the kind of the artefact and its format version.
Writing is atomic; every entry carries a checksum (CRC-32), which reading verifies.
"""

import dataclasses
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import flax.traverse_util
import numpy as np

Config = TypeVar("Config")

FORMAT = 1
"""Version of the layout of artefacts."""

_UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError),
    *(NotImplementedError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error),
)
"""Exceptions of `numpy.load`, `zipfile` and `json` for files that are no archives, or damaged."""


class ArtefactError(Exception):
    """An artefact cannot be read; the message is one line that names the file and the reason.

    Examples:
        >>> try:
        ...     cj.load_policy("nowhere.npz")
        ... except cj.ArtefactError as error:
        ...     print(error)
        there is no file nowhere.npz
    """


def write_artefact(path: str | os.PathLike[str], kind: str, description: Mapping[str, Any], arrays: Any) -> None:
    """Writes or replaces an artefact, atomically.

    Args:
        path: the file, by convention `.npz`; its folder must exist.
        kind: what it is, such as `policy`.
        description: JSON-compatible values.
        arrays: nested dicts of arrays; an entry of the file is named by its path, joined by `/`.
    """
    path = Path(path)
    header = json.dumps({"kind": kind, "format": FORMAT, **description})
    flat = {name: np.asarray(leaf) for name, leaf in flax.traverse_util.flatten_dict(arrays, sep="/").items()}
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, description=np.asarray(header), **flat)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_artefact(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the description and the nested arrays of an artefact.

    Raises:
        ArtefactError: there is no such file, it is damaged, of another kind, or of a newer format.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            flat = dict(stored)
        description = json.loads(str(flat.pop("description")))
        found, version = description.pop("kind"), description.pop("format")
    except FileNotFoundError:
        raise ArtefactError(f"there is no file {path}") from None
    except (
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ArtefactError(f"{path} is no {kind}, or damaged ({' '.join(str(error).split())})") from error
    if found != kind:
        raise ArtefactError(f"{path} is a {found}, not a {kind}")
    if version != FORMAT:
        raise ArtefactError(f"{path} has format {version}; this version of coda-jax reads format {FORMAT}")
    return description, flax.traverse_util.unflatten_dict(flat, sep="/")


def from_plain(default: Config, values: Mapping[str, Any]) -> Config:
    """A dataclass from `dataclasses.asdict` after a journey through JSON.

    Args:
        default: an instance with the nested dataclasses and tuples to expect.
        values: the fields by name; a missing field has its default.

    Raises:
        TypeError: a field is unknown.
    """

    def convert(current: Any, value: Any) -> Any:
        if dataclasses.is_dataclass(current):
            return from_plain(current, value)
        return tuple(value) if isinstance(current, tuple) else value

    fields = {name: convert(getattr(default, name, None), value) for name, value in values.items()}
    return dataclasses.replace(default, **fields)  # pyright: ignore[reportArgumentType, reportCallIssue]
