"""Loggers of a run beside `metrics.csv`: TensorBoard and Weights & Biases, by the extra `coda-jax[log]`.

Each gets the rows of every evaluation as the CSV does: `METRIC/seed_S` at the number of the round. An interrupted run
continues its log. Weights & Biases follows its own variables; `WANDB_MODE=offline` needs no network.
"""

import contextlib
import importlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.host.errors import UserError

Rows = Callable[[int, np.ndarray, Mapping[str, np.ndarray]], None]
"""(round, seeds `[num_seeds]`, columns `[num_seeds]` by name): the rows of one evaluation."""

Write = Callable[[int, dict[str, float]], None]
"""(round, values by name)."""


@contextlib.contextmanager
def logger(kind: str, folder: Path, config: Mapping[str, Any]) -> Iterator[Rows]:
    """Opens a logger for the time of a training.

    Args:
        kind: `tensorboard` or `wandb`.
        folder: the run folder; the log goes to a folder of that name in it.
        config: the settings, for Weights & Biases.

    Raises:
        UserError: its package is not installed.
    """
    write, close = _tensorboard(folder / kind) if kind == "tensorboard" else _wandb(folder / kind, config)

    def rows(round_: int, seeds: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        write(
            round_,
            {
                f"{name}/seed_{seed}": float(value)
                for name, column in columns.items()
                for seed, value in zip(seeds, column, strict=True)
            },
        )

    try:
        yield rows
    finally:
        close()


def check_logger(kind: str) -> None:
    """Refuses a logger whose package is not installed, by a `UserError`."""
    _package(kind)


def _tensorboard(folder: Path) -> tuple[Write, Callable[[], None]]:
    writer = _package("tensorboard").SummaryWriter(str(folder), filename_suffix=f".{time.time_ns()}")

    def write(round_: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, round_)
        writer.flush()

    return write, writer.close


def _wandb(folder: Path, config: Mapping[str, Any]) -> tuple[Write, Callable[[], None]]:
    name = folder.parent.name
    package = _package("wandb")
    folder.mkdir(exist_ok=True)
    run = package.init(project="coda-jax", name=name, id=name, resume="allow", dir=folder, config=dict(config))

    def write(round_: int, values: dict[str, float]) -> None:
        run.log(values, step=round_)

    return write, run.finish


def _package(kind: str) -> Any:
    name = {"tensorboard": "tensorboardX", "wandb": "wandb"}[kind]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"--log needs {name}; install the extra: coda-jax[log]") from error
