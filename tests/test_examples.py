"""Every example runs as it stands, stays short, and says what its first line promises."""

import pathlib
import subprocess
import sys

import pytest

from coda_jax.data.vault import write_vault

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"

PRINTS = {
    "guided_sampling": "lambda 0.2: waves start at 1.0",
    "mamujoco_alone": "observations (100, 16, 2, 12)",
    "own_augmentation": "return after each round",
    "own_learner": "return after each round",
    "own_task": "both agents to the right: return",
}
"""Part of the output of each example that needs no data."""


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error::UserWarning", EXAMPLES / f"{name}.py", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_an_example_has_less_than_30_lines():
    lengths = {path.stem: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert set(lengths) == {*PRINTS, "own_vault"}
    assert max(lengths.values()) < 30, lengths


SLOW = ("guided_sampling",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in sorted(PRINTS)])
def test_an_example_runs(name):
    assert PRINTS[name] in run(name)


@pytest.mark.slow
def test_the_vault_example_runs_on_a_vault(tmp_path):
    from coda_jax import named_dataset

    write_vault(tmp_path / "Replay.vlt" / "one", named_dataset("2halfcheetah", "replay", 16))
    assert "round 2 (train): mean return" in run("own_vault", "2halfcheetah", str(tmp_path / "Replay.vlt"), "smoke")
