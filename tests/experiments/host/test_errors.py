import dataclasses
import errno
import io
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import jax
import pytest

from coda_jax.data.vault import VaultError
from coda_jax.ranges import Count, Ranged, Share
from experiments.host.errors import FROM_CHECKPOINT, UserError, one_line_errors, parse_command


@dataclasses.dataclass(frozen=True)
class Settings:
    dataset: Literal["replay", "good"] = "replay"
    """Which dataset."""
    guidance: float = 0.6
    """Scale."""
    scale: float | Literal["auto"] = 0.6
    """Scale, or a word."""


@dataclasses.dataclass(frozen=True)
class Inner(Ranged):
    share: Share = 0.5


@dataclasses.dataclass(frozen=True)
class Outer(Ranged):
    inner: Inner = dataclasses.field(default_factory=Inner)
    num_rows: Count = 1


def exits_with(error: BaseException, capsys) -> tuple[object, str]:
    with pytest.raises(SystemExit) as exit_, one_line_errors():
        raise error
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return exit_.value.code, lines[0]


@pytest.mark.parametrize("kind", [UserError, VaultError])
def test_user_errors_are_one_line_and_status_two(kind, capsys):
    assert exits_with(kind("no vault at x;\n  name another"), capsys) == (2, "error: no vault at x; name another")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EISDIR])
def test_a_disk_that_cannot_be_written_names_the_file(number, capsys):
    status, line = exits_with(OSError(number, os.strerror(number), "/cache/x"), capsys)
    assert status == 2
    assert "/cache/x" in line and "CODA_JAX_CACHE" in line


def test_a_full_disk_is_recognised_inside_a_library_error(capsys):
    status, line = exits_with(ValueError("RESOURCE_EXHAUSTED: write\n [No space left on device]"), capsys)
    assert (status, "no space left on device" in line) == (2, True)
    wrapped = RuntimeError("cannot save")
    wrapped.__cause__ = OSError(errno.ENOSPC, "full", "/runs/y")
    assert "/runs/y" in exits_with(wrapped, capsys)[1]


@pytest.mark.parametrize(
    ("afterwards", "words"),
    [
        ((), "the same command starts again"),
        ((FROM_CHECKPOINT,), "the same command continues from the last checkpoint"),
    ],
)
def test_an_interrupt_says_what_the_same_command_does(afterwards, words, capsys):
    with pytest.raises(SystemExit) as exit_, one_line_errors(*afterwards):
        raise KeyboardInterrupt
    assert exit_.value.code == 130 and words in capsys.readouterr().err


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend")])
def test_a_platform_that_the_machine_lacks_is_one_line(error, capsys, monkeypatch):
    def devices() -> None:
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    status, line = exits_with(error, capsys)
    assert status == 2 and line.startswith("error: JAX_PLATFORMS is '")


def test_sigterm_says_how_to_resume(tmp_path):
    """Also with a thread that would report the end of the interpreter."""
    script = """
import concurrent.futures, os, signal, sys, time
from experiments.host.errors import one_line_errors
pool = concurrent.futures.ThreadPoolExecutor()
def again():
    while True:
        pool.submit(int); time.sleep(0.001)
pool.submit(again)
with one_line_errors():
    print("before")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
"""
    (tmp_path / "job.py").write_text(script)
    command = [sys.executable, str(tmp_path / "job.py")]
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=where)
    assert (ended.returncode, ended.stdout) == (143, "before\n")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("terminated: the same command starts again: ") and line.endswith(shlex.join(command))


def test_sigterm_is_the_callers_again_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with one_line_errors():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    "error", [ValueError("shapes"), RuntimeError("shapes"), FileNotFoundError(errno.ENOENT, "none", "x")]
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)), one_line_errors():
        raise error


def test_flags_are_read():
    assert parse_command(Settings, ["--guidance", "0.3", "--guidance", "0.4"]) == Settings(guidance=0.4)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--dataset", "best"], ["'best'", "--dataset", "'good'"]),
        (["--guidance", "much"], ["much", "guidance"]),
        (["--guidence", "1"], ["--guidence"]),
        (["--scale", "much"], ["--scale is 'much'; it must be FLOAT or auto; see"]),
    ],
)
def test_a_bad_flag_is_one_line(args, words, capsys):
    with pytest.raises(UserError) as error:
        parse_command(Settings, args)
    message = str(error.value)
    assert all(word in message for word in [*words, "see --help"])
    assert "\n" not in message and "─" not in message
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_misspelt_flag_is_answered_with_the_right_one_in_every_encoding(encoding, monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    message = "Unrecognized options: --guidence, 1; perhaps you meant --guidance; see --help for the flags"
    with pytest.raises(UserError, match=f"^{message}$"):
        parse_command(Settings, ["--guidence", "1"])


def test_a_range_names_the_flag_of_the_outermost_and_of_an_inner_dataclass():
    for args, message in (
        (["--inner.share", "2"], "--inner.share is 2.0; it must be at least 0 and at most 1"),
        (["--num-rows", "0"], "--num-rows is 0; it must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            parse_command(Outer, args)


def test_an_ascii_terminal_gets_question_marks(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    with one_line_errors():
        print("λ 0.6", flush=True)
    assert written.getvalue() == b"? 0.6\n"


def test_double_precision_is_refused(capsys):
    with jax.enable_x64(True), pytest.raises(SystemExit) as exit_, one_line_errors():
        raise AssertionError
    assert exit_.value.code == 2 and "JAX_ENABLE_X64" in capsys.readouterr().err


@dataclasses.dataclass(frozen=True)
class Sized:
    preset: str = "laptop"
    updates: int = 1000
    seeds: int = 4


SIZES = {"laptop": Sized(), "smoke": Sized("smoke", updates=10, seeds=1)}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], Sized()),
        (["--preset", "smoke"], Sized("smoke", 10, 1)),
        (["--seeds", "3", "--preset=smoke"], Sized("smoke", 10, 3)),
        (["--preset", "smoke", "--preset", "laptop"], Sized()),
    ],
)
def test_a_preset_is_where_the_flags_start_from(args, expected):
    assert parse_command(Sized, args, presets=SIZES) == expected


@pytest.mark.parametrize(
    ("args", "words"), [(["--preset", "huge"], "'huge'; choose one of: laptop, smoke"), (["--preset"], "--preset")]
)
def test_a_bad_preset_is_one_line(args, words):
    with pytest.raises(UserError, match=words):
        parse_command(Sized, args, presets=SIZES)


def test_help_prints_the_docstrings(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_command(Settings, ["--help"])
    assert not exit_.value.code
    assert "Which dataset." in capsys.readouterr().out
