"""The evidence: `python -m experiments.report` makes RESULTS.md and its figures from recorded runs.

Copy run folders of `experiments.mamujoco`, `experiments.steering` and `experiments.polynomial`, without checkpoints,
below `results/` and repeat the command. The same numbers give the same page and figures, bit for bit. With run
folders as arguments it compares these instead: `python -m experiments.report RUN OTHER_RUN --output FOLDER`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from experiments.evidence.comparison import compare_runs
from experiments.host.console import say
from experiments.host.errors import UserError, one_line_errors, parse_command


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Makes RESULTS.md from the recorded runs below `results/`, or compares the named runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run folders to compare in a table and figures; without any, the command makes RESULTS.md."""
    output: Path | None = None
    """Folder for a comparison (required with runs); otherwise the page to write, by default `RESULTS.md`."""
    results: Path = Path("results")
    """Folder of recorded runs; its subfolder `figures` receives the page's figures."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        config = parse_command(ReportConfig, args)
        if config.runs:
            if config.output is None:
                raise UserError("a comparison needs --output, a folder for its table and pictures")
            compare_runs(config.runs, config.output)
            return
        try:
            from experiments.evidence.page import write_page  # slow to import: rliable
        except ModuleNotFoundError as error:
            if error.name not in ("rliable", "pandas", "arch"):
                raise
            raise UserError("the page of results needs rliable; install the extra: coda-jax[report]") from error

        output = config.output or Path("RESULTS.md")
        if output.is_dir():
            raise UserError(f"--output {output} is a folder; name a file, or runs to compare")
        say(write_page(config.results, output))


if __name__ == "__main__":
    main()
