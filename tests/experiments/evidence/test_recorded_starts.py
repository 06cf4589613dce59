"""Verdicts on plays from recorded states, from made-up records whose order is known."""

import json

import pytest

from experiments.evidence.recorded_starts import (
    find_plays,
    recorded_starts_headline,
    recorded_starts_sections,
    section,
)
from experiments.host.errors import UserError

SETTINGS = {"num_states": 128, "num_steps": 500}


def run(label, earned, seeds, dataset="replay", **more):
    """A run whose critics' values are 1 too large."""
    ones = [1.0] * len(seeds)
    return {"dataset": dataset, "label": label, "seeds": seeds, "earned": earned, "bias": ones, "error": ones, **more}


def record(folder, *runs):
    file = folder / "values.json"
    numbered = {f"run{index}": run for index, run in enumerate(runs)}
    file.write_text(json.dumps({"settings": SETTINGS, "runs": numbered}))
    return file


def test_a_method_is_judged_against_the_baselines_of_its_dataset(tmp_path):
    file = record(
        tmp_path,
        run("no augmentation", [1.0, 2.0, 3.0, 4.0], [0, 1, 2, 3]),
        run("unconditional, mix 0.1", [5.0, 1.0, 9.0, 2.0], [0, 1, 2, 3]),
        run("CODA", [3.0, 4.1], [0, 1]),
        run("CODA", [5.0, 5.9], [2, 3]),  # more seeds of the same method
        run("CODA", [0.0, 0.1], [0, 1], dataset="good"),  # no baseline
    )
    page = "\n".join(section(find_plays(file), SETTINGS))
    assert "| replay | CODA | 4 | 4.5 +- 0.6 | 1.0 +- 0.0 | 1.0 +- 0.0 |  |  |" in page
    assert "| replay | CODA | no augmentation | **holds** | +2.0," in page and "4 paired seeds |" in page
    assert "| replay | CODA | unconditional, mix 0.1 | **not decidable at this scale** | +0.2," in page
    assert "| replay | unconditional, mix 0.1 | no augmentation | **not decidable at this scale** |" in page
    assert page.count("| good |") == 1 and page.count("**") == 6
    assert recorded_starts_sections(tmp_path)[2:] == section(find_plays(file), SETTINGS)
    assert recorded_starts_sections(tmp_path / "none") == []
    assert recorded_starts_headline(tmp_path).endswith(" decided: replay 1 above and 0 below, of 1.")
    assert recorded_starts_headline(tmp_path / "none") is None


def test_the_share_of_slowed_plays_is_compared_where_both_have_it(tmp_path):
    file = record(
        tmp_path,
        run("no augmentation", [1.0, 2.0], [0, 1], slowed=[0.5, 0.5]),
        run("CODA", [1.0, 2.6], [0, 1], slowed=[0.25, 0.75]),
        run("older", [1.0, 2.0], [0, 1]),
    )
    page = "\n".join(section(find_plays(file), SETTINGS))
    assert "| replay | CODA | 2 | 1.8 +- 0.8 | 1.0 +- 0.0 | 1.0 +- 0.0 | 50.0 +- 25.0 |  |" in page
    assert "| +0, bootstrap [-25, 25], t [-318, 318], 2 paired seeds |  |" in page
    assert page.count("percentage points") == 1 and page.count("2 paired seeds |  |  |") == 1


def test_returns_of_episodes_are_judged_too(tmp_path):
    file = record(
        tmp_path,
        run("no augmentation", [1.0, 2.0, 3.0, 4.0], [0, 1, 2, 3], episode=[100.0, 200.0, 300.0, 400.0]),
        run("CODA", [1.0, 2.0, 3.0, 4.0], [0, 1, 2, 3], episode=[149.0, 251.0, 349.0, 451.0]),
    )
    page = "\n".join(section(find_plays(file), SETTINGS))
    assert "| 0.0 |" not in page and "|  | 300 +- 65 |" in page
    assert "| **holds**: +50, bootstrap [49, 51], t [48, 52], 4 paired seeds |" in page


def test_methods_are_compared_beside_the_same_learner(tmp_path):
    """A record may hold runs of two learners, whose seeds may be the same."""
    slow = {"learner": "decay of the learning rate 100"}
    record(
        tmp_path,
        run("no augmentation", [1.0, 2.0, 3.0], [0, 1, 2]),
        run("CODA", [3.0, 4.1, 5.0], [0, 1, 2]),
        run("no augmentation", [7.0, 8.0, 9.0], [0, 1, 2], **slow),
        run("CODA", [6.0, 7.1, 8.0], [0, 1, 2], **slow),
    )
    page = "\n".join(recorded_starts_sections(tmp_path))
    assert page.count("paired seeds") == 2
    assert "| replay | CODA | no augmentation | **holds** | +2.0," in page
    assert (
        "| replay | CODA (decay of the learning rate 100) | no augmentation (decay of the learning rate 100) "
        "| **does not hold** | -1.0," in page
    )
    assert recorded_starts_headline(tmp_path).endswith(" decided: replay 1 above and 1 below, of 2.")


def test_a_seed_of_a_method_counts_once(tmp_path):
    file = record(tmp_path, run("CODA", [1.0, 2.0], [0, 1]), run("CODA", [3.0], [1]))
    with pytest.raises(UserError, match="has seed 1 of 'CODA' twice"):
        find_plays(file)


def test_the_headline_counts_a_method_once(tmp_path):
    """By its record with most states, even if another record decides otherwise."""
    for num_states, earned in ((64, [9.0, 9.1, 9.2]), (128, [0.0, 0.1, 0.2])):
        folder = tmp_path / str(num_states)
        folder.mkdir()
        file = record(folder, run("no augmentation", [5.0, 5.2, 5.1], [0, 1, 2]), run("CODA", earned, [0, 1, 2]))
        file.write_text(file.read_text().replace('"num_states": 128', f'"num_states": {num_states}'))
    assert recorded_starts_headline(tmp_path).endswith(" decided: replay 0 above and 1 below, of 1.")
