"""Several processes that train one run together, one on each host, by `jax.distributed`.

All run the same program on one mesh over all their devices; the first one alone writes the run folder and prints. A
process that never joins others is the first and the only one. `worker` says how processes end that lose the others.
"""

import contextlib
import hashlib
import itertools
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from experiments.host.errors import UserError

JOIN_SECONDS = 120
"""How long processes wait for each other at the start."""

HEARTBEAT_SECONDS = 60
"""After so long without a sign of life a process counts as dead."""

LOST_STATUS = 75
"""Exit status of a worker that has lost another process (`EX_TEMPFAIL` of sysexits.h)."""

LOST = "another process of this run has ended, and says why itself, or does not answer"
CONTINUE = "give the same commands on all hosts to continue from the last checkpoint"

_WEEK = 7 * 24 * 3600
_LOST_WORDS = re.compile("gloo|nccl|coordination|barrier|heartbeat", re.IGNORECASE)

_barriers = itertools.count()


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Meets the other processes; call it before jax's backend starts.

    If they do not meet within `JOIN_SECONDS`, this process ends with one line and exit status 2.

    Args:
        coordinator: `HOST:PORT` of the first process; None takes all from Slurm, Open MPI, Kubernetes or a TPU pod, as
            JAX finds it in the environment.
        num_processes: how many they are; None without a coordinator.
        process_id: the number of this one, from 0; None without a coordinator.

    Raises:
        UserError: the port is in use, or there is no cluster that JAX knows.
    """
    if coordinator is not None and process_id == 0:
        _check_port(coordinator)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM over
    late = threading.Timer(JOIN_SECONDS, _end_alone, [coordinator or "cluster"])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=num_processes,
            process_id=process_id,
            cluster_detection_method="deactivate" if coordinator else None,
            initialization_timeout=2 * JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_WEEK,  # the others wait for the first, which writes the results
        )
    except ValueError as error:
        raise UserError(
            f"--coordinator cluster finds none that JAX knows ({error}); give HOST:PORT, --num-processes, --process-id"
        ) from error
    finally:
        late.cancel()


def _check_port(coordinator: str) -> None:
    """Refuses a port in use, at which JAX would crash, or meet the processes of another run."""
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except OSError as error:
        raise UserError(f"--coordinator {coordinator}: the port cannot be used here ({error.strerror})") from error


def _end_alone(coordinator: str) -> None:
    sys.stderr.write(
        f"error: --coordinator {coordinator}: the processes have not met within {JOIN_SECONDS} s; start all of them, "
        "with process 0 on that host and its port open to the others\n"
    )
    sys.stderr.flush()
    os._exit(2)


@contextlib.contextmanager
def lost_processes_end() -> Iterator[None]:
    """Ends this process without a line where another one is gone: JAX may abort it at the same time.

    Raises:
        SystemExit: status `LOST_STATUS`, to which the supervisor adds the line.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not _LOST_WORDS.search(str(error)):
            raise
        os.write(2, f"{error}\n".encode(errors="replace"))
        raise SystemExit(LOST_STATUS) from error


def leave() -> None:
    """Waits until all processes are done, and parts."""
    jax.distributed.shutdown()


def several() -> bool:
    """Whether this process has joined others; does not start jax's backend."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return not several() or jax.process_index() == 0


def let_first_print() -> None:
    """Drops what this process and its libraries print to stdout from now on, unless it is the first."""
    if not is_first():
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)


def barrier() -> None:
    """Waits, for up to a week, until all processes are here; all pass their barriers in the same order."""
    if several():
        ocp.multihost.get_barrier_sync_fn()(key=f"coda-jax {next(_barriers)}", timeout_ms=_WEEK * 1000)


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """A block that the others enter when the first one has left it, and find what it has put into the cache."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


@contextlib.contextmanager
def in_first(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Enters a context, such as a lock, in the first process alone, and before the others enter the block."""
    with context if is_first() else contextlib.nullcontext():
        barrier()
        yield


def from_first(number: int) -> int:
    """An integer of the first process, in all."""
    if not several():
        return number
    barrier()
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def gathered(tree: Any) -> Any:
    """The values of a pytree of arrays, also of the seeds on other hosts, as numpy arrays on this one."""
    if not several():
        return jax.device_get(tree)
    barrier()  # it waits as long as needed, unlike a collective
    return multihost_utils.process_allgather(tree, tiled=True)


def check_equal(what: str, text: str) -> None:
    """Refuses a run for which something is not the same on all hosts.

    Raises:
        UserError: in all processes.
    """
    if not several():
        return
    barrier()
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    if np.any(multihost_utils.process_allgather(digest) != digest):
        raise UserError(f"the hosts of this run differ in {what}; use hosts of one kind, with the same files")


def check_shared(folder: Path, advice: str) -> None:
    """Refuses a folder that is not on a disk of all hosts.

    Args:
        folder: the first process has made it.
        advice: the end of the message: how another one is chosen.

    Raises:
        UserError: in all processes.
    """
    if not several():
        return
    token = folder / f".shared-{from_first(secrets.randbelow(2**31))}"
    if is_first():
        token.touch()
    barrier()
    is_seen = multihost_utils.process_allgather(np.array(token.exists()))
    if is_first():
        token.unlink()
    if not is_seen.all():
        host = int(np.argmin(is_seen))
        raise UserError(f"process {host} does not see the folder {folder} of process 0; {advice} on a shared disk")
