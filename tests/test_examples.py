"""Every example runs as it stands, stays short, and says what its first line promises."""

import json
import pathlib
import re
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


TOUR = EXAMPLES / "tour.ipynb"


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error::UserWarning", EXAMPLES / f"{name}.py", *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_an_example_has_less_than_30_lines():
    lengths = {path.stem: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert set(lengths) == {*PRINTS, "own_vault"}
    assert max(lengths.values()) < 30, lengths


SLOW = ("guided_sampling", "mamujoco_alone", "own_augmentation")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in sorted(PRINTS)])
def test_an_example_runs(name):
    assert PRINTS[name] in run(name)


@pytest.mark.slow
def test_the_vault_example_runs_on_a_vault(tmp_path):
    from coda_jax import named_dataset

    write_vault(tmp_path / "Replay.vlt" / "one", named_dataset("2halfcheetah", "replay", 16))
    assert "round 2 (train): mean return" in run("own_vault", "2halfcheetah", str(tmp_path / "Replay.vlt"), "smoke")


def code_cells(notebook: pathlib.Path) -> list[dict]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def printed(cells: list[dict]) -> str:
    return "".join(line for cell in cells for output in cell["outputs"] for line in output.get("text", ()))


def num_pictures(cells: list[dict]) -> int:
    return sum("image/png" in output.get("data", ()) for cell in cells for output in cell["outputs"])


def final_returns(text: str) -> dict[str, list[float]]:
    """Of the seeds of each method in the tour."""
    rows = re.findall(r"^(no augmentation|CODA \(paper\)|CODA\+) .* seeds (.*)$", text, re.M)
    return {name: [float(value) for value in seeds.split()] for name, seeds in rows}


def check_what_the_tour_says(cells: list[dict]) -> None:
    returns = final_returns(printed(cells))
    assert min(returns["CODA+"]) > 2.0
    assert max(returns["no augmentation"] + returns["CODA (paper)"]) < 1.0


def test_the_tour_is_stored_with_its_outputs():
    cells = code_cells(TOUR)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert num_pictures(cells) == 4
    assert TOUR.stat().st_size < 2**20
    check_what_the_tour_says(cells)


@pytest.mark.slow
def test_the_tour_runs(tmp_path):
    """Prints the stored text up to its numbers, which depend on the CPU."""
    command = [sys.executable, "-W", "error::UserWarning", "-m", "tests.notebook", str(TOUR), str(tmp_path / "tour")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=EXAMPLES.parent)
    assert finished.returncode == 0, finished.stderr
    cells, stored = code_cells(tmp_path / "tour"), code_cells(TOUR)
    texts = [re.sub(r"[\s+-]*[\d.]+", " #", printed(each)) for each in (cells, stored)]
    assert texts[0] == texts[1]
    assert num_pictures(cells) == num_pictures(stored)
    check_what_the_tour_says(cells)
