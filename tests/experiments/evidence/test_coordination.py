"""Verdicts on recorded comparisons: those of made-up returns whose order is known."""

import json

import pytest

from experiments.evidence.coordination import coordination_headline, coordination_sections, find_comparisons
from experiments.host.errors import UserError

RETURNS = {
    "no augmentation": [0.0, 0.1, -0.1, 0.05],
    "unconditional": [5.0, 5.1, 4.9, 5.05],
    "CODA (paper)": [1.0, -1.0, 1.5, -1.5],
    "CODA+": [5.05, 5.05, 4.95, 5.0],
    "oracle, split rows": [5.0, 5.0, 5.0, 5.0],
}
SETTINGS = "num_agents: 2\nhalf_width: 1.0\nsharpness: 4.0\ncoverage: 0.0\n"


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "coordination" / "one"
    folder.mkdir(parents=True)
    summary = {"task": "same-side", "num_seeds": 4, "updates": 1200, "dataset_mean_return": 6.0}
    summary |= {"convention_return": 7.0, "returns_per_seed": RETURNS}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(SETTINGS)
    return tmp_path


def rewrite_returns(results, returns):
    """Replaces the returns of the comparison."""
    file = results / "coordination" / "one" / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"returns_per_seed": returns}))


def test_the_section_has_all_returns_and_the_verdicts(results):
    page = "\n".join(coordination_sections(find_comparisons(results), "results/coordination"))
    assert "| CODA+ | 5.01 +- 0.02 | 4.95 |" in page
    verdicts = {
        line.split(" | ")[0]: line.split(" | ")[1] for line in page.splitlines() if line.startswith("| CODA+ ab")
    }
    assert verdicts == {
        "| CODA+ above no augmentation": "**holds**",
        "| CODA+ above unconditional": "**not decidable at this scale**",
        "| CODA+ above CODA (paper)": "**holds**",
    }
    assert (
        "--task same-side --sharpness 4.0 --coverage 0.0`" in page
        and "results/coordination/one/figures/returns.png" in page
    )


def test_older_runs_predicted_rewards_from_all_inputs(results):
    folder = results / "coordination" / "one"
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"task": "spread"}))
    (folder / "config.yaml").write_text("num_agents: 2\nnum_conventions: 2\ncoverage: 0.0\n")
    (run,) = find_comparisons(results)
    assert run.title == "spread, 2 agents, 2 conventions, coverage 0, rewards from all inputs, heun"
    assert "--reward-inputs all" in run.command and "--num-agents 2" in run.command


def test_the_title_names_another_batch_size(results):
    (results / "coordination/one/config.yaml").write_text(SETTINGS + "training:\n  batch_size: 32\n")
    (run,) = find_comparisons(results)
    assert run.title == "same side, 2 agents, sharpness 4, coverage 0, heun, mini-batches of 32"
    assert "--training.batch-size 32" in run.command


def test_the_headline_counts_what_is_decided(results):
    line = coordination_headline(find_comparisons(results))
    assert "CODA (paper) is above it in 0 of 1, below it in 0; CODA+ is above it in 1 of 1, below it in 0." in line
    worse = {"no augmentation": RETURNS["CODA+"], "CODA+": RETURNS["no augmentation"]}
    rewrite_returns(results, worse)
    assert "CODA (paper) is above it in 0 of 0, below it in 0; CODA+ is above it in 0 of 1, below it in 1." in (
        coordination_headline(find_comparisons(results))
    )


def test_the_overview_has_the_means(results):
    page = "\n".join(coordination_sections(find_comparisons(results), ""))
    title = "same side, 2 agents, sharpness 4, coverage 0, heun"
    verdicts = "**holds** | **not decidable at this scale**"
    assert f"| {title} | 4 | 0.01 | 0.00 | 5.01 | 5.00 | {verdicts} |" in page


def test_a_comparison_may_lack_methods(results):
    rewrite_returns(results, {name: RETURNS[name] for name in ("no augmentation", "CODA+")})
    page = "\n".join(coordination_sections(find_comparisons(results), ""))
    assert "| 4 | 0.01 |  | 5.01 |  | **holds** |  |" in page
    assert "| CODA+ above no augmentation | **holds** |" in page and "CODA (paper) above" not in page


def test_without_runs_there_is_no_section(tmp_path):
    assert coordination_sections(find_comparisons(tmp_path), "") == []
    assert "no recorded runs" in coordination_headline([])


def test_a_damaged_summary_is_refused(results):
    (results / "coordination/one/summary.json").write_text('{"task": "same-side"}')
    with pytest.raises(UserError, match=r"summary\.json"):
        find_comparisons(results)
