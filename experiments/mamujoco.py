"""CODA on MaMuJoCo: `python -m experiments.mamujoco --dataset replay`.

The run folder (see `host.run_folder`) belongs to the settings; given again, the same command continues its run, and
shows the table of a finished one. With `--coordinator` it is one of several processes, each on a host of its own.
"""

import functools
import sys
from collections.abc import Sequence

from experiments.host import hosts
from experiments.host.errors import FROM_CHECKPOINT, one_line_errors
from experiments.host.worker import is_worker, supervise, work
from experiments.pipeline.estimate import phases_of, show_estimate
from experiments.pipeline.flags import parse_experiment
from experiments.pipeline.run import run
from experiments.pipeline.settings import CLUSTER, ExperimentConfig, check, check_used


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors(FROM_CHECKPOINT):
        config = parse_experiment(sys.argv[1:] if args is None else args)
        check(config)
        check_used(config)
        if config.estimate is not None:
            show_estimate(config.estimate, config.num_seeds, config.precision, functools.partial(phases_of, config))
        elif config.coordinator is None:
            run(config)
        elif is_worker():
            work(lambda: _run_with_others(config))
        else:
            supervise()


def _run_with_others(config: ExperimentConfig) -> None:
    coordinator = None if config.coordinator == CLUSTER else config.coordinator
    hosts.join(coordinator, config.num_processes, config.process_id)
    with hosts.lost_processes_end():
        run(config)
        hosts.leave()


if __name__ == "__main__":
    main()
