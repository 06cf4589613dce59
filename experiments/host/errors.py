"""Error handling: invalid input ends with one line (error, location, remedy) and exit status 2."""

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

import jax
import tyro

from coda_jax.data.vault import VaultError
from coda_jax.ranges import RangeError
from experiments.host.help_text import HelpScreen, help_registry

Config = TypeVar("Config")

_FLAG = re.compile(r"--[\w.-]+")
_OF_UNION = re.compile(r"Error parsing (--[\w.-]+): no type matching (\S+) could be instantiated from \['(.*?)'\]")

_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
)


STARTS_AGAIN = "starts again"
FROM_UNFINISHED = "continues with what is unfinished"
FROM_CHECKPOINT = "continues from the last checkpoint"
"""What the same command does after an interruption, of commands that keep nothing, finished parts, or checkpoints."""


class UserError(Exception):
    """An error that the user must correct; the message is one line with error, location and remedy."""


@contextlib.contextmanager
def sigterm_ends(afterwards: str) -> Iterator[None]:
    """Lets SIGTERM end the process at once, with one line and status 143; does nothing outside of the main thread.

    Nothing is unwound: threads that still write would report that they cannot. A process that is killed leaves nothing
    half written either. `afterwards` is as in `one_line_errors`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> NoReturn:
        with contextlib.suppress(RuntimeError):  # the signal came while it was being written to
            sys.stdout.flush()
        os.write(2, f"terminated: {_how_to_continue(afterwards)}\n".encode(errors="replace"))
        os._exit(143)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def one_line_errors(afterwards: str = STARTS_AGAIN) -> Iterator[None]:
    """Wraps a whole program: converts errors that the user must correct into one line on stderr and an exit status.

    Args:
        afterwards: what the same command does after an interruption, such as `FROM_CHECKPOINT`.

    Raises:
        SystemExit: status 2 for a `UserError`, a `VaultError`, a `RangeError`, double precision, a full disk or a path
            that is not writable (also if a library raises its own exception for it), or a platform of `JAX_PLATFORMS`
            that this machine lacks; status 130 for a `KeyboardInterrupt`, with the same command, as SIGTERM has it
            (`sigterm_ends`). Any other exception is a bug and keeps its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # an encoding without Greek letters prints question marks
    try:
        if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
            raise UserError("JAX_ENABLE_X64 is set, but the commands compute in single precision; unset it")
        with sigterm_ends(afterwards):
            yield
    except KeyboardInterrupt:
        print(f"interrupted: {_how_to_continue(afterwards)}", file=sys.stderr)
        sys.exit(130)
    except (UserError, VaultError, RangeError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        message = _disk_error(error) or _platform_error(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def parse_command(
    config: type[Config],
    args: Sequence[str] | None = None,
    presets: Mapping[str, Config] | None = None,
    chosen_by: str = "--preset",
) -> Config:
    """Reads a config from the command line by `tyro.cli`, with error messages of one line.

    Args:
        config: the dataclass whose fields are the flags.
        args: the command line without the name of the program; that of the process by default.
        presets: configs with default values, selected by a flag; without it, the defaults of the dataclass.
        chosen_by: the flag that selects one of them, by name.

    Raises:
        UserError: an unknown flag or preset, or an invalid value.
    """
    args = sys.argv[1:] if args is None else args
    default = _chosen_preset(args, presets, chosen_by) if presets else None
    tyro_output, screen = io.StringIO(), HelpScreen()
    try:
        with contextlib.redirect_stderr(tyro_output), contextlib.redirect_stdout(screen), help_registry():
            if default is None:
                return tyro.cli(config, args=args, prog=_program())
            return tyro.cli(config, args=args, prog=_program(), default=default)
    except SystemExit as exit_:
        if exit_.code in (0, None):  # --help
            screen.show()
            raise
        raise UserError(_rejection(tyro_output.getvalue(), exit_)) from None


def _program() -> str | None:
    """The command as the user gives it, if this process was started by `python -m`."""
    if sys.argv[0].startswith("coda-jax "):  # set by `experiments.__main__`
        return sys.argv[0]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return None if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"


def _rejection(box: str, exit_: SystemExit) -> str:
    """The reason why tyro rejected the command line, in one line, with its suggestions.

    tyro prints a box, without sides where the encoding is ASCII: a title, the message and advice, each after a
    horizontal line.
    """
    lines = [line.strip("│╭╮╰╯ ") for line in box.strip().splitlines()]
    parts: list[list[str]] = [[]]
    for line in lines[1:]:
        if line and not line.strip("─-"):
            parts.append([])
        else:
            parts[-1].append(line)
    message, *advice = [part for part in parts if any(part)]
    message = " ".join(" ".join(message).split())
    of_union = _OF_UNION.match(message)
    if of_union:
        flag, kinds, value = of_union.groups()
        message = f"{flag} is '{value}'; it must be {re.sub('[{}]', '', kinds).replace('|', ' or ')}"
    error = _range_error(exit_)
    if error is not None:
        # The label is the field that holds the dataclass, or the name of the outermost class.
        label = re.match(r"Error parsing ([a-z][\w.-]*):", message)
        name = f"{label[1]}.{error.field}" if label else error.field
        message = f"--{name.replace('_', '-')} {error.problem}"
    names = [
        flag[0] for part in advice if part[0].startswith("Perhaps") for line in part if (flag := _FLAG.match(line))
    ]
    suggestion = f"; perhaps you meant {' or '.join(names)}" if names else ""
    choices = "".join(f"; {' '.join(part)}" for part in advice if part[0].startswith("Available"))
    return f"{message.rstrip('.')}{suggestion}{choices}; see --help for the flags"


def _range_error(error: BaseException | None) -> RangeError | None:
    """The `RangeError` that an exception goes back to, if there is one."""
    while error is not None and not isinstance(error, RangeError):
        error = error.__context__
    return error


def _chosen_preset(args: Sequence[str], presets: Mapping[str, Config], chosen_by: str) -> Config | None:
    chosen = None
    for position, flag in enumerate(args):
        name, equals, value = flag.partition("=")
        if name == chosen_by:
            chosen = value if equals else next(iter(args[position + 1 :]), None)
    if chosen is None:  # the flag is missing, or lacks its value, which tyro reports
        return None
    if chosen not in presets:
        raise UserError(f"{chosen_by} is '{chosen}'; choose one of: {', '.join(presets)}")
    return presets[chosen]


def _how_to_continue(afterwards: str) -> str:
    return f"the same command {afterwards}: {shlex.join(sys.orig_argv)}"


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


def _platform_error(error: Exception) -> str | None:
    """One line on `JAX_PLATFORMS`, if jax cannot start on what it names; jax raises an `AssertionError` for some."""
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if not platforms or not isinstance(error, AssertionError | RuntimeError):
        return None
    try:
        jax.devices()
    except (AssertionError, RuntimeError):
        return f"JAX_PLATFORMS is '{platforms}', but jax finds no such device here; unset it, or name another, as cpu"
    return None
