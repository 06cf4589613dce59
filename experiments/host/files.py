"""Atomic writing of files, and checksums of them."""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from experiments.host.errors import UserError

CHECKSUMS = "SHA256SUMS"
"""A folder's checksums, in the format of `sha256sum --check`, after a comment line with the checksum of the list."""

STAMP = "# SHA-256 of the lines below: "
"""How the first line of `stamp` begins."""

_CHECKSUM = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>.+)")


@contextlib.contextmanager
def opened_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its place at the end of the block: readers see the complete old or new one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_atomically(path: Path, text: str) -> None:
    """Writes or replaces a text file atomically: readers see the complete old or new file, also after a kill."""
    with opened_atomically(path) as file:
        file.write(text.encode())


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


def stamp(text: str) -> str:
    """A text after a line with its SHA-256, which is a comment in YAML and to `sha256sum --check`."""
    return f"{STAMP}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def read_stamped(path: Path) -> tuple[str, bool]:
    """A text file without the line of `stamp`, and whether it had one; older files have none.

    Raises:
        ValueError: the text does not match its first line, or is not UTF-8.
        OSError: the file cannot be read.
    """
    whole = path.read_bytes().decode()
    if not whole.startswith(STAMP):
        return whole, False
    text = whole.partition("\n")[2]
    if whole != stamp(text):
        raise ValueError("it does not match the checksum in its first line")
    return text, True


class Checksums(NamedTuple):
    """What a folder's `SHA256SUMS` holds."""

    digests: dict[str, str]
    """By the path of the file in the folder."""
    is_stamped: bool
    """Whether the list has a checksum of its own. Older lists have none, and cover `.csv`, `.json` and `.yaml`."""

    def covers(self, file: Path) -> bool:
        """Whether a file of the folder must be in the list."""
        return self.is_stamped or file.suffix in (".csv", ".json", ".yaml")


def write_checksums(folder: Path, digests: Mapping[str, str]) -> None:
    """Writes `SHA256SUMS`, from digests by the files' paths in the folder."""
    write_atomically(folder / CHECKSUMS, stamp("".join(f"{value}  {name}\n" for name, value in digests.items())))


def read_checksums(folder: Path, advice: str) -> Checksums | None:
    """The checksums of a folder; None for folders without `SHA256SUMS`: unfinished and older ones.

    Raises:
        UserError: the list is damaged.
    """
    file = folder / CHECKSUMS
    if not file.exists():
        return None
    try:
        text, is_stamped = read_stamped(file)
        lines = [_CHECKSUM.fullmatch(line) for line in text.splitlines()]
        digests = {line["name"]: line["digest"] for line in lines if line}
        if not digests or not all(lines):
            raise ValueError("it has a line that is no checksum, or is empty")
    except ValueError as error:
        raise UserError(f"{file} is damaged: {' '.join(str(error).split())}; {advice}") from error
    return Checksums(digests, is_stamped)


def verify(file: Path, advice: str) -> None:
    """Compares a file with the `SHA256SUMS` beside it, if there is one.

    Args:
        file: the file that is going to be read.
        advice: the end of the message: what to do about a damaged file.

    Raises:
        UserError: the file is not the one that was written, or the checksums are damaged.
        OSError: the file does not exist.
    """
    checksums = read_checksums(file.parent, advice)
    if checksums is not None and checksums.covers(file):
        _compare(file, checksums.digests.get(file.name), advice)


def verify_folder(folder: Path, advice: str, may_lack: Callable[[str], bool] = lambda name: False) -> None:
    """Compares the files of a folder with its `SHA256SUMS`, if there is one.

    Args:
        folder: the folder.
        advice: the end of the message: what to do about a damaged file.
        may_lack: whether a file, by its path in the folder, may be missing.

    Raises:
        UserError: a file is missing or is not the one that was written, or the checksums are damaged.
    """
    checksums = read_checksums(folder, advice)
    if checksums is None:
        return
    for name, expected in checksums.digests.items():
        if (folder / name).is_file():
            _compare(folder / name, expected, advice)
        elif not may_lack(name):
            raise UserError(f"{folder / name} is missing, but is in {CHECKSUMS}; {advice}")
    if not checksums.is_stamped:  # a line may be lost
        for file in sorted(folder.glob("[!.]*.*")):
            if checksums.covers(file):
                _compare(file, checksums.digests.get(file.name), advice)


def _compare(file: Path, expected: str | None, advice: str) -> None:
    if digest(file) != expected:
        raise UserError(f"{file} is damaged: it does not match {CHECKSUMS}; {advice}")


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
