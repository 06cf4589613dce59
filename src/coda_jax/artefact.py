"""Artefacts: arrays and a description in one `.npz`, which `numpy.load` reads without pickle and without this package.

The description is JSON, the entry `description` of the file: the kind of the artefact, its format version, and
`arrays`, the type and shape of each array by name. Writing is atomic; every entry carries a checksum (CRC-32).

Reading checks the CRC-32 of all bytes of every entry, which `numpy.load` does not where a damaged header asks for fewer
bytes, and compares the arrays with `arrays`, because a damaged directory of the archive can lose entries. Artefacts
older than `arrays` are read without this comparison. NaN and infinite numbers are refused.
"""

import dataclasses
import io
import json
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import flax.traverse_util
import numpy as np

Config = TypeVar("Config")

FORMAT = 1
"""Version of the layout of artefacts."""

_UNREADABLE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError),
    *(RuntimeError, OverflowError, struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""Exceptions of `zipfile`, `numpy` and `json` for files that are no archives, or damaged."""


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
    flat = {name: np.asarray(leaf) for name, leaf in flax.traverse_util.flatten_dict(arrays, sep="/").items()}
    header = json.dumps({"kind": kind, "format": FORMAT, "arrays": _types_and_shapes(flat), **description})
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, description=np.asarray(header), **flat)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_artefact(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the description and the nested arrays of an artefact.

    Raises:
        ArtefactError: there is no such file, it is damaged, of another kind or of a newer format, or a number in it is
            not finite.
    """
    try:
        with Path(path).open("rb") as file:
            flat = _entries(file)
        description = json.loads(str(flat.pop("description")))
        found, version = description.pop("kind"), description.pop("format")
        expected = description.pop("arrays", None)
    except FileNotFoundError:
        raise ArtefactError(f"there is no file {path}") from None
    except _UNREADABLE as error:
        raise ArtefactError(f"{path} is no {kind}, or damaged ({' '.join(str(error).split())})") from error
    if found != kind:
        raise ArtefactError(f"{path} is a {found}, not a {kind}")
    if version != FORMAT:
        raise ArtefactError(f"{path} has format {version}; this version of coda-jax reads format {FORMAT}")
    present = _types_and_shapes(flat)
    if expected is not None and expected != present:
        changed = min(name for name in {*expected, *present} if expected.get(name) != present.get(name))
        raise ArtefactError(f"{path} is damaged: its array {changed} is missing or is not the one that was written")
    for name, array in flat.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise ArtefactError(f"{path} is no {kind} to use: its array {name} has NaN or infinite numbers")
    return description, flax.traverse_util.unflatten_dict(flat, sep="/")


def _entries(file: IO[bytes]) -> dict[str, np.ndarray]:
    """The arrays of an archive by name, after the checksum of all their bytes is verified.

    Raises:
        Exception: one of `_UNREADABLE`.
    """
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            stored = io.BytesIO(archive.read(entry))  # to its end, where `zipfile` compares the CRC-32
            arrays[entry.filename.removesuffix(".npy")] = np.lib.format.read_array(stored, allow_pickle=False)
    return arrays


def _types_and_shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """The type and shape of each array, as JSON has them."""
    return {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}


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
