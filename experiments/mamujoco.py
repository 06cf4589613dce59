"""CODA on MaMuJoCo: `python -m experiments.mamujoco --dataset replay --guidance 0.6`.

The run folder (see `host.run_folder`) belongs to the settings; given again, the same command continues its run, and
shows the table of a finished one.
"""

import functools
import sys
from collections.abc import Sequence

from experiments.host.errors import one_line_errors
from experiments.pipeline.estimate import phases_of, show_estimate
from experiments.pipeline.flags import parse_experiment
from experiments.pipeline.run import run
from experiments.pipeline.settings import check


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        config = parse_experiment(sys.argv[1:] if args is None else args)
        check(config)
        if config.estimate is None:
            run(config)
        else:
            show_estimate(config.estimate, config.num_seeds, config.precision, functools.partial(phases_of, config))


if __name__ == "__main__":
    main()
