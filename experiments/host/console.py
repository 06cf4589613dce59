"""Console output: lines, progress with the time left, and small tables.

Progress is a live bar on a terminal, and a line every few seconds otherwise (file, pipe).
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table
import yaml

ROW_NAME = 8
"""Least width of the names of a table's rows, in characters; longer ones are broken."""

LINE_PERIOD = 10.0
"""Seconds between two lines of progress without a terminal."""

_console = rich.console.Console()


def say(message: str) -> None:
    """Prints a line."""
    _console.print(message, markup=False, highlight=False, soft_wrap=True)


def warn(message: str) -> None:
    """Prints a warning to stderr."""
    print(f"warning: {message}", file=sys.stderr)


def print_config(config: Mapping[str, Any]) -> None:
    """Prints the resolved configuration as YAML."""
    say(yaml.safe_dump(dict(config), sort_keys=False).rstrip())


def print_table(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Prints a table with one column per name.

    Where the screen is narrow, columns move together, then headings and row names are broken into lines. Numbers are
    printed whole in any case, if need be beyond the screen's width.
    """
    table = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    longest_words = numbers = 0
    for column, name in enumerate(rows[0]):
        of_cells = max((len(word) for row in rows for word in row[name].split()), default=0)
        longest_words += max(of_cells, *map(len, name.split()))
        is_named = column == 0
        least = min(of_cells, ROW_NAME) if is_named else of_cells
        numbers += least
        table.add_column(name, justify="left" if is_named else "right", overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*row.values())
    blanks = len(rows[0]) + 1  # a blank on either side of each column; the padding doubles it
    table.padding = (0, 1) if longest_words + 3 * blanks <= _console.width else (0, 0)
    if numbers + blanks > _console.width:
        table.width = numbers + blanks
    _console.print(table, crop=False)


def print_histogram(values: np.ndarray, bins: int = 12, width: int = 50) -> None:
    """Prints how often values fall into equal intervals, a line each; values that are not finite are left out."""
    counts, edges = np.histogram(values[np.isfinite(values)], bins)
    numbers = [f"{edge:,.0f}" for edge in edges]
    widest = max(map(len, numbers))
    for low, high, count in zip(numbers, numbers[1:], counts, strict=False):
        bar = "#" * -(-width * int(count) // max(1, int(counts.max())))
        say(f"{low:>{widest}} to {high:>{widest}}  {bar} {count}")


def duration(seconds: float) -> str:
    """Formats a duration as `12 s`, `3:25` or `1:03:25`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Phase:
    """Progress of one phase of a program; created by `phase`."""

    def __init__(self, name: str, total: int | None, done: int, bar: rich.progress.Progress | None):
        self.name, self.total, self.done = name, total, done
        self._start, self._done_at_start = time.monotonic(), done
        self._last_line = self._start
        self._bar = bar
        self._task = bar.add_task(name, total=total, completed=done, note="", left="") if bar else None

    @property
    def seconds(self) -> float:
        """Seconds since the phase began."""
        return time.monotonic() - self._start

    @property
    def seconds_left(self) -> float | None:
        """Estimated remaining seconds; None before the first step, or if the number of steps is unknown."""
        steps = self.done - self._done_at_start
        if self.total is None or steps == 0:
            return None
        return self.seconds / steps * (self.total - self.done)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Adds completed steps, with a short note."""
        self.done += steps
        left = "" if self.seconds_left is None else f"{duration(self.seconds_left)} left"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, note=note, left=left)
        elif time.monotonic() - self._last_line >= LINE_PERIOD:
            self._last_line = time.monotonic()
            parts = [
                f"{self.done} of {self.total}" if self.total else str(self.done),
                duration(self.seconds),
                left,
                note,
            ]
            say(f"{self.name}: {', '.join(part for part in parts if part)}")


@contextlib.contextmanager
def phase(name: str, total: int | None = None, done: int = 0) -> Iterator[Phase]:
    """Shows the progress of a phase, and its duration at the end.

    Args:
        name: the phase, such as `fitting the denoiser`.
        total: the number of steps; None shows only the time that has passed.
        done: steps done in earlier processes; they do not count in the estimate of the time left.
    """
    if _console.is_terminal:
        bar = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("{task.description}"),
            *([rich.progress.BarColumn(), rich.progress.MofNCompleteColumn()] if total is not None else []),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.fields[left]}"),
            rich.progress.TextColumn("{task.fields[note]}", markup=False),
            console=_console,
            transient=True,
        )
        with bar:
            progress = Phase(name, total, done, bar)
            yield progress
    else:
        say(f"{name} ..." if total is None else f"{name}: {done} of {total}")
        progress = Phase(name, total, done, None)
        yield progress
    say(f"{name}: done in {duration(progress.seconds)}")
