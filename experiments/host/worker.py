"""A worker process and its supervisor: whatever ends a process of several hosts, it ends with one line.

JAX aborts a process that has lost the others, with a C++ stack trace, at any moment. So the command of the user only
starts itself again as a worker, and waits. What C++ libraries print in the worker goes to a file, which the supervisor
names if the worker crashes. When the supervisor is gone, the worker ends at once.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from experiments.host.errors import UserError, one_line_errors
from experiments.host.hosts import CONTINUE, LOST, LOST_STATUS

_STDERR = "CODA_JAX_WORKER_STDERR"
"""The variable that a worker finds the file descriptor for its own messages in."""


def is_worker() -> bool:
    """Whether a supervisor has started this process."""
    return _STDERR in os.environ


def supervise() -> NoReturn:
    """Runs the command line of this process in a worker.

    Raises:
        SystemExit: with the status of the worker.
        UserError: the worker crashed.
    """
    stderr = os.dup(2)
    with tempfile.NamedTemporaryFile(prefix="coda-jax-worker-", suffix=".log", delete=False) as log:
        worker = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            stdin=subprocess.PIPE,  # closed by the system when this process ends
            stderr=log,
            pass_fds=[stderr],
            env={**os.environ, _STDERR: str(stderr)},
            start_new_session=True,  # Ctrl-C is for this process
        )
    status = worker.wait()
    if status < 0 or status == LOST_STATUS:
        is_lost = status in (LOST_STATUS, -signal.SIGABRT)
        reason = LOST if is_lost else f"the worker of this process was ended by {signal.Signals(-status).name}"
        raise UserError(f"{reason}; {CONTINUE} (messages of libraries: {log.name})")
    Path(log.name).unlink()
    sys.exit(status)


def work(command: Callable[[], None]) -> NoReturn:
    """Runs the command of a worker, and ends the process.

    A failed one ends without the exit handlers of JAX, which would wait for the other processes.
    """
    sys.stderr = open(int(os.environ.pop(_STDERR)), "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    status = 1
    try:
        with one_line_errors():
            for number in (signal.SIGTERM, signal.SIGINT):  # the supervisor says how to continue
                signal.signal(number, signal.SIG_IGN)
            command()
        status = 0
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end_with_supervisor() -> None:
    os.read(0, 1)
    os._exit(1)
