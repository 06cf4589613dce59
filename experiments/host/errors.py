"""Error handling: invalid input ends with one line (what is wrong, where, what to do) and exit status 2."""

import contextlib
import errno
import io
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn, TypeVar

import tyro

from coda_jax.data.vault import VaultError

Config = TypeVar("Config")

_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
)


class UserError(Exception):
    """An error that the user must correct; the message is one line: what is wrong, where, and what to do."""


class Terminated(SystemExit):
    """SIGTERM arrived."""


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Raises `Terminated` in the main thread when SIGTERM arrives; does nothing in another thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the first is enough
        raise Terminated(143)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Wraps a whole program: converts errors that the user must correct into one line on stderr and an exit status.

    Raises:
        SystemExit: status 2 for a `UserError`, a `VaultError`, a full disk or a path that is not writable (also if a
            library raises its own exception for it); status 130 for a `KeyboardInterrupt` and 143 for SIGTERM, with
            the command that continues. Any other exception is a bug and keeps its traceback.
    """
    try:
        with sigterm_raises():
            yield
    except KeyboardInterrupt:
        print(f"interrupted: {_how_to_continue()}", file=sys.stderr)
        sys.exit(130)
    except Terminated:
        print(f"terminated: {_how_to_continue()}", file=sys.stderr)
        sys.exit(143)
    except (UserError, VaultError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        message = _disk_error(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def parse_command(
    config: type[Config], args: Sequence[str] | None = None, presets: Mapping[str, Config] | None = None
) -> Config:
    """Reads a config from the command line by `tyro.cli`, with error messages of one line.

    Args:
        config: the dataclass whose fields are the flags.
        args: the command line without the name of the program; that of the process by default.
        presets: configs with default values, selected by `--preset NAME`; without it, the defaults of the dataclass.

    Raises:
        UserError: an unknown flag or preset, or an invalid value.
    """
    args = sys.argv[1:] if args is None else args
    default = _chosen_preset(args, presets) if presets else None
    tyro_output = io.StringIO()
    try:
        with contextlib.redirect_stderr(tyro_output):
            return tyro.cli(config, args=args) if default is None else tyro.cli(config, args=args, default=default)
    except SystemExit as exit_:
        if exit_.code in (0, None):  # --help
            raise
        # tyro prints a box: title, error message, horizontal line, further advice.
        box = re.sub("[│╭╮╰╯]", "", tyro_output.getvalue()).strip("─\n ")
        message = box.split("\n", 1)[-1].split("───", 1)[0]
        raise UserError(f"{' '.join(message.split()).rstrip('.')}; see --help for the flags") from None


def _chosen_preset(args: Sequence[str], presets: Mapping[str, Config]) -> Config | None:
    chosen = None
    for position, flag in enumerate(args):
        name, equals, value = flag.partition("=")
        if name == "--preset":
            chosen = value if equals else next(iter(args[position + 1 :]), None)
    if chosen is None:  # the flag is missing, or lacks its value, which tyro reports
        return None
    if chosen not in presets:
        raise UserError(f"--preset is '{chosen}'; choose one of: {', '.join(presets)}")
    return presets[chosen]


def _how_to_continue() -> str:
    return f"the same command continues from the last checkpoint: {shlex.join(sys.orig_argv)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _disk_error(error: BaseException | None) -> str | None:
    """One line on a full or unwritable disk, if that is the cause."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            number, where = error.errno, error.filename
        else:  # tensorstore and others pass on the text of the system error
            number = next((n for n in _DISK_ERRORS[:3] if os.strerror(n) in str(error)), None)
            where = None
        if number is not None:
            return (
                f"cannot access {where or 'the cache or the run folder'}: {os.strerror(number).lower()}; "
                "free some space, or choose another folder by CODA_JAX_CACHE, --run-dir or --output"
            )
        error = error.__cause__ or error.__context__
    return None
