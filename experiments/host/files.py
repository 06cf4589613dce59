"""Atomic writing of files, and checksums of them."""

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from experiments.host.errors import UserError

CHECKSUMS = "SHA256SUMS"
"""A folder's checksums, in the format of `sha256sum --check`."""


def write_atomically(path: Path, text: str) -> None:
    """Writes or replaces a text file atomically: readers see the complete old or new file, also after a kill."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def reserve(folder: Path, num_bytes: int) -> None:
    """Fails if a folder's disk or quota has no space for that many bytes, before threads of a library start to write.

    The space is free again on return. macOS has no `posix_fallocate`: nothing is tested there.

    Raises:
        OSError: there is not enough space.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            os.posix_fallocate(probe.fileno(), 0, max(1, num_bytes))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def digest(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_checksums(folder: Path, digests: Iterable[tuple[str, str]]) -> None:
    """Writes `SHA256SUMS`, from pairs of a file's name and its digest."""
    write_atomically(folder / CHECKSUMS, "".join(f"{value}  {name}\n" for name, value in digests))


def verify(file: Path, advice: str) -> None:
    """Compares a file with the `SHA256SUMS` beside it; older folders have none, and then there is nothing to compare.

    Args:
        file: one of the files that the checksums cover.
        advice: the end of the message: what to do about a damaged file.

    Raises:
        UserError: the file is not the one that was written, or the checksums are damaged.
        OSError: the file does not exist.
    """
    checksums = file.with_name(CHECKSUMS)
    if not checksums.exists():
        return
    lines = checksums.read_text(encoding="utf-8", errors="replace").splitlines()
    if f"{digest(file)}  {file.name}" not in lines:
        raise UserError(f"{file} is damaged: it does not match {CHECKSUMS} beside it; {advice}")


def write_sealed(path: Path, text: str) -> None:
    """Writes a text atomically, with its SHA-256 in a last line."""
    write_atomically(path, f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}")


def read_sealed(path: Path) -> str:
    """Reads a text of `write_sealed`; texts that end with `}` are of older versions, without a digest.

    Raises:
        ValueError: the text is damaged.
        OSError: the file cannot be read.
    """
    whole = path.read_bytes().decode()
    if whole.endswith("}"):
        return whole
    text, _, found = whole.rpartition("\n")
    if found != hashlib.sha256(text.encode()).hexdigest():
        raise ValueError(f"{path} does not match its digest")
    return text
