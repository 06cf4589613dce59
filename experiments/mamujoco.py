"""CODA on MaMuJoCo: `python -m experiments.mamujoco --dataset replay --guidance 0.6`.

The run folder (see `host.run_folder`) belongs to the settings; given again, the same command continues its run, and
shows the table of a finished one.
"""

from collections.abc import Sequence

from experiments.host.errors import one_line_errors, parse_command
from experiments.pipeline.run import run
from experiments.pipeline.settings import PRESETS, ExperimentConfig, check


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        config = parse_command(ExperimentConfig, args, presets=PRESETS)
        check(config)
        run(config)


if __name__ == "__main__":
    main()
