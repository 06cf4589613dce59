import contextlib
import io

import pytest
import rich.console

from experiments.host import console
from experiments.pipeline.quality import show_quality


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

    monkeypatch.setattr(console.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (205, "3:25"), (3805, "1:03:25")])
def test_duration(seconds, text):
    assert console.duration(seconds) == text


def test_without_a_terminal_progress_is_a_line_every_ten_seconds(clock, capsys):
    with console.phase("training", total=100) as phase:
        for _ in range(100):
            clock.now += 0.5
            phase.advance(note="return 7")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "training: 0 of 100",
        "training: 20 of 100, 10 s, 40 s left, return 7",
        "training: 40 of 100, 20 s, 30 s left, return 7",
        "training: 60 of 100, 30 s, 20 s left, return 7",
        "training: 80 of 100, 40 s, 10 s left, return 7",
        "training: 100 of 100, 50 s, 0 s left, return 7",
        "training: done in 50 s",
    ]


def test_time_left_does_not_count_what_earlier_processes_did(clock):
    with console.phase("training", total=100, done=90) as phase:
        assert phase.seconds_left is None
        clock.now += 4
        phase.advance(2)
        assert phase.seconds_left == pytest.approx(16)


def test_a_phase_of_unknown_length(clock, capsys):
    with console.phase("compiling") as phase:
        clock.now += 75
    assert phase.seconds == 75
    assert capsys.readouterr().out.splitlines() == ["compiling ...", "compiling: done in 1:15"]


def test_a_phase_that_fails_is_not_done(capsys):
    with contextlib.suppress(RuntimeError), console.phase("fitting"):
        raise RuntimeError
    assert "done" not in capsys.readouterr().out


@pytest.mark.parametrize("total", [None, 3])
def test_on_a_terminal_the_bar_is_live_and_leaves_one_line(monkeypatch, total):
    screen = io.StringIO()
    terminal = rich.console.Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(console, "_console", terminal)
    with console.phase("fitting", total=total) as phase:
        phase.advance(2, note="loss [0.1]")
        assert phase._bar is not None
        phase._bar.refresh()
        console.say("a line above the bar")
    text = screen.getvalue()
    assert "fitting" in text and "loss [0.1]" in text and "a line above the bar" in text
    assert ("2/3" in text) == (total == 3)
    assert text.rstrip().endswith("fitting: done in 0 s")


def test_tables_and_configs_are_printed(capsys):
    console.print_config({"task": "2halfcheetah", "diffusion": {"num_steps": 64}})
    console.print_table("results", [{"seed": "0", "return": "3100"}, {"seed": "1", "return": "2900"}])
    out = capsys.readouterr().out
    assert "diffusion:\n  num_steps: 64\n" in out
    assert all(word in out for word in ["results", "seed", "return", "3100", "2900"])


def on_a_screen(monkeypatch, width: int, show) -> str:
    screen = io.StringIO()
    monkeypatch.setattr(console, "_console", rich.console.Console(file=screen, width=width))
    show()
    return screen.getvalue()


@pytest.mark.parametrize("width", [100, 60, 30, 8])
def test_numbers_are_printed_whole_on_any_screen(monkeypatch, width):
    numbers = [[f"{(row + 1) * 10 ** (column + 3):,.3f}" for column in range(5)] for row in range(3)]
    rows = [
        {"trajectories": "real, steps shuffled", **{f"observations {c}": n for c, n in enumerate(own)}}
        for own in numbers
    ]
    words = on_a_screen(monkeypatch, width, lambda: console.print_table("errors", rows)).split()
    assert {number for own in numbers for number in own} <= set(words)


@pytest.mark.parametrize("width", [100, 80, 60])
def test_the_quality_of_samples_fits_the_screen(monkeypatch, width):
    kinds = ("guided", "unguided", "guided, first round", "real", "real, actions shuffled", "real, steps shuffled")
    errors = ("feature_distance", "worst_feature_distance", "observation_error", "dynamics_error", "reward_error")
    values = iter(range(1000))
    quality = {kind: {error: next(values) / 7 for error in (*errors, "optimism")} for kind in kinds}
    text = on_a_screen(monkeypatch, width, lambda: show_quality(quality))
    assert max(map(len, text.splitlines())) <= width
    words = set(text.split())
    assert {f"{value:.3f}" for own in quality.values() for value in own.values()} <= words
    assert {"guided", "unguided", "first", "round", "real", "actions", "steps", "shuffled", "optimism"} <= words


def test_runs_without_optimism_are_shown_too(monkeypatch):
    old = {kind: {"dynamics_error": -1e-9} for kind in ("guided", "real")}
    text = on_a_screen(monkeypatch, 80, lambda: show_quality(old))
    assert "dynamics" in text and "optimism" not in text and "-0.000" not in text and text.count("0.000") == 2


def test_long_lines_are_not_broken_nor_markup_read(capsys):
    console.say("[a] " + "x" * 300)
    assert capsys.readouterr().out == "[a] " + "x" * 300 + "\n"


def test_warnings_go_to_stderr(capsys):
    console.warn("other cores")
    assert capsys.readouterr() == ("", "warning: other cores\n")
