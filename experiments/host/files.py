"""Atomic writing of files."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Writes or replaces a text file atomically: readers see the complete old or new file, also after a kill."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
