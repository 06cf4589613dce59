"""`--help`: no empty defaults, no `None` among the choices, and lines of the screen's width."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from experiments.host.errors import parse_command
from experiments.host.help_text import choices
from experiments.steering import SteeringConfig


@dataclasses.dataclass(frozen=True)
class Inner:
    """Inner settings."""

    rate: float | None = None
    """A rate, by default
    (as the paper has it) none."""


@dataclasses.dataclass(frozen=True)
class Outer:
    """A description that is longer than the sixty columns of a narrow screen, and goes on and on to its very end."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders."""
    output: Path | None = None
    """A path."""
    log: Literal["csv", "text"] | None = None
    """A logger."""
    seeds: tuple[int, ...] = ()
    """Seeds; all by default."""
    task: Annotated[str, choices(("ant", "hopper"))] = "ant"
    """A task."""
    sizes: tuple[int, ...] = (1, 2)
    """Sizes."""
    inner: Inner = Inner()


def help_of(config: type, width: int, monkeypatch, capsys) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as ended:
        parse_command(config, ["--help"])
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("config", [Outer, SteeringConfig])
def test_the_help_fits_the_screen_and_has_no_empty_defaults(config, width, monkeypatch, capsys):
    text = help_of(config, width, monkeypatch, capsys)
    assert max(map(len, text.splitlines())) <= width and text.startswith("usage: ")
    assert "None" not in text and not re.search(r"default:\s*\)", text) and "\n\n\n" not in text


def test_choices_defaults_and_paragraphs(monkeypatch, capsys):
    text = help_of(Outer, 80, monkeypatch, capsys)
    for part in (
        "--output PATH",
        "--log {csv,text}",
        "--task {ant,hopper}",
        "--inner.rate FLOAT",
        "(default: 1 2)",
        "by default (as the paper",
    ):
        assert part in text, part
    assert parse_command(Outer, ["--output", "None", "--inner.rate", "0.5"]) == Outer(inner=Inner(rate=0.5))
