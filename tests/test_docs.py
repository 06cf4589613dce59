"""The site: API pages are complete, presets and commands are named correctly, and the code of "Extending" runs."""

import re
from pathlib import Path

import pytest

from coda_jax.presets import PRESETS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
INTERNAL = frozenset(
    f"coda_jax.{name}"
    for name in (
        "data.published",
        "data.survey",
        "data.vault_files",
        "envs.assets",
        "envs.factorization",
        "envs.kinematics",
        "envs.physics",
        "envs.robots",
        "envs.segments",
        "envs.tasks",
    )
)
"""Modules that callers reach through others."""


def test_every_module_has_an_api_page_once():
    found = [m for page in sorted(DOCS.glob("api/*.md")) for m in re.findall(r"^::: (\S+)", page.read_text(), re.M)]
    package = ROOT / "src"
    modules = {
        ".".join(path.relative_to(package).with_suffix("").parts)
        for path in package.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert len(found) == len(set(found))
    assert set(found) == modules - INTERNAL


def test_the_sizes_of_the_presets_are_theirs():
    rows = re.findall(
        r"^\| `(\w+)`[^|]*\|[^|]*\| (\d+) \| (\d+) \| ([\d,]+) \|", (DOCS / "running.md").read_text(), re.M
    )
    assert {name: (int(seeds), int(steps), int(updates.replace(",", ""))) for name, seeds, steps, updates in rows} == {
        name: (
            preset.num_seeds,
            preset.sampler.num_steps,
            preset.training.num_rounds * preset.training.updates_per_round,
        )
        for name, preset in PRESETS.items()
    }


def test_every_command_and_example_that_is_named_is_there():
    text = "".join(path.read_text() for path in (ROOT / "README.md", *DOCS.glob("*.md")))
    for command in set(re.findall(r"python -m experiments\.(\w+)", text)):
        assert (ROOT / "experiments" / f"{command}.py").exists(), command
    for example in set(re.findall(r"examples/(\w+\.py)", text)):
        assert (ROOT / "examples" / example).exists(), example


def test_links_out_of_the_docs_lead_somewhere():
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


@pytest.mark.slow
def test_the_code_of_extending_runs(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "extending.md").read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "extending.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    rounds = ["0 evaluate", "0 generate", "1 train", "2 train", "3 train"]
    assert [line.rsplit(maxsplit=1)[0] for line in lines] == rounds
