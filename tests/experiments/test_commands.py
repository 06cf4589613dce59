"""One name for all commands: every module that has a `main` is listed, and gets the rest of the command line."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
from experiments import __main__ as commands
from experiments import play


def test_every_command_is_listed_and_has_a_main():
    files = {path.stem for path in Path(experiments.__file__).parent.glob("*.py")}
    assert {module for module, _ in commands.COMMANDS.values()} == files - {"__init__", "__main__"}
    for module, purpose in commands.COMMANDS.values():
        assert callable(importlib.import_module(f"experiments.{module}").main)
        assert purpose in commands.usage()
    assert max(map(len, commands.usage().splitlines())) < 80


def test_a_command_gets_the_rest_and_is_named_in_its_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["coda-jax", "play", "--help"])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert not ended.value.code
    assert "usage: coda-jax play" in " ".join(capsys.readouterr().out.split())
    seen = []
    monkeypatch.setattr(play, "play", seen.append)
    commands.main(["play", "RUN", "--episodes", "7"])
    assert (str(seen[0].run), seen[0].episodes) == ("RUN", 7)


@pytest.mark.parametrize(
    ("code", "environment", "printed"),
    [
        ("import experiments, matplotlib; print(matplotlib.get_backend())", {"MPLBACKEND": "bogus"}, (0, "agg\n", 0)),
        ("import experiments", {"PYTHONOPTIMIZE": "2"}, (2, "", 1)),
    ],
)
def test_the_environment_of_plots_and_optimisation_ends_in_no_traceback(code, environment, printed):
    where = {**os.environ, "PYTHONPATH": str(Path(experiments.__file__).parents[1]), **environment}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=where)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == printed


def test_the_list_the_version_and_unknown_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["coda-jax"])
    commands.main()
    assert capsys.readouterr().out == commands.usage() + "\n"
    commands.main(["--version"])
    assert capsys.readouterr().out.strip().count(".") == 2
    with pytest.raises(SystemExit) as ended:
        commands.main(["reprot"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: there is no command 'reprot'; did you mean: report\n"
