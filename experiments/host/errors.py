"""Bad input ends with one clear line and exit status 2: what is wrong, where, and what to do."""

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import tyro

from coda_jax.data.vault import VaultError

Config = TypeVar("Config")

_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG),
)


class UserError(Exception):
    """Something only the user can put right; the message is one line: what, where, what to do."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Wraps a whole program: what the user can put right becomes one line on stderr and an exit status.

    Raises:
        SystemExit: with status 2 instead of a `UserError`, a `VaultError`, or a full disk or a place not writable
            (also where a library reports it in an exception of its own); with 130 instead of a `KeyboardInterrupt`.
            Everything else is a bug and keeps its traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
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
    """Reads a config from the command line, `tyro.cli` with its complaints cut to one line.

    Args:
        config: the dataclass whose fields are the flags.
        args: the command line without the program's name; that of the process by default.
        presets: configs to start from, chosen by `--preset NAME`; the dataclass's own defaults without that flag.

    Raises:
        UserError: on an unknown flag or preset, or a value that does not fit.
    """
    args = sys.argv[1:] if args is None else args
    default = _chosen_preset(args, presets) if presets else None
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints):
            return tyro.cli(config, args=args) if default is None else tyro.cli(config, args=args, default=default)
    except SystemExit as exit_:
        if exit_.code in (0, None):  # --help
            raise
        # tyro draws a box: a title, the complaint, a rule, and further advice.
        box = re.sub("[│╭╮╰╯]", "", complaints.getvalue()).strip("─\n ")
        complaint = box.split("\n", 1)[-1].split("───", 1)[0]
        raise UserError(f"{' '.join(complaint.split()).rstrip('.')}; see --help for the flags") from None


def _chosen_preset(args: Sequence[str], presets: Mapping[str, Config]) -> Config | None:
    chosen = None
    for position, flag in enumerate(args):
        name, equals, value = flag.partition("=")
        if name == "--preset":
            chosen = value if equals else next(iter(args[position + 1 :]), None)
    if chosen is None:  # not given, or without its value, of which tyro complains
        return None
    if chosen not in presets:
        raise UserError(f"--preset is '{chosen}'; choose one of: {', '.join(presets)}")
    return presets[chosen]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _disk_error(error: BaseException | None) -> str | None:
    """One line on a full or unwritable disk, if that is the cause."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            number, where = error.errno, error.filename
        else:  # tensorstore and others pass the system's words on
            number = next((n for n in _DISK_ERRORS[:3] if os.strerror(n) in str(error)), None)
            where = None
        if number is not None:
            return (
                f"cannot access {where or 'the cache or the run folder'}: {os.strerror(number).lower()}; "
                "make room there, or choose another place by CODA_JAX_CACHE, --run-dir or --output"
            )
        error = error.__cause__ or error.__context__
    return None
