"""What trained policies earn from recorded states, discounted: the objective of the learner, by `experiments.values`.

Episodes on the rest of the page start at the robot's rest, and their rewards count alike. Verdicts follow the rule of
`claims`, over paired seeds that played from the same states.
"""

import json
from pathlib import Path
from typing import Any

from experiments.evidence.claims import judge, words
from experiments.evidence.intervals import paired_difference
from experiments.evidence.page_tables import spread, table
from experiments.host.errors import UserError
from experiments.host.records import parse_mapping

FILE = "values.json"
"""The record of `experiments.values`."""

BASELINES = ("no augmentation", "unconditional")
"""How the labels of the methods begin that others are compared with."""

MEASURES = ("earned", "bias", "error")
"""What the tables show: the discounted return, and the difference, mean and root mean square, of the critics' values
from it."""

Plays = dict[tuple[str, str], dict[str, dict[int, float]]]
"""By dataset and method: each measure of each seed."""


def find_plays(file: Path) -> Plays:
    """The measures of all runs in a record, those of one method put together.

    Raises:
        UserError: the record cannot be read, or two runs of one method have a seed in common.
    """
    record = parse_mapping(file, json.loads, {"settings": dict, "runs": dict}, "measure again, or remove it")
    found: Plays = {}
    for name, run in record["runs"].items():
        of_method = found.setdefault((run["dataset"], run["label"]), {measure: {} for measure in MEASURES})
        if repeated := set(of_method["earned"]) & set(run["seeds"]):
            raise UserError(f"{file} has seed {min(repeated)} of '{run['label']}' twice, in {name} too; remove one")
        for measure in MEASURES:
            of_method[measure] |= dict(zip(run["seeds"], run[measure], strict=True))
    return found


def recorded_starts_sections(results: Path) -> list[str]:
    """A table of what each method earns, and a verdict on each difference to a baseline, for each record."""
    files = sorted(results.rglob(FILE))
    return [part for file in files for part in section(find_plays(file), settings_of_record(file))]


def settings_of_record(file: Path) -> dict[str, Any]:
    """The settings by which a record was measured."""
    return parse_mapping(file, json.loads, {"settings": dict}, "measure again, or remove it")["settings"]


def section(plays: Plays, settings: dict[str, Any]) -> list[str]:
    """The tables of one record."""
    measured = [
        (dataset, label, str(len(of["earned"])), *(spread(list(of[measure].values()), 1) for measure in MEASURES))
        for (dataset, label), of in plays.items()
    ]
    judged = []
    for (dataset, label), of in plays.items():
        for (other_dataset, other), baseline in plays.items():
            is_baseline = other.startswith(BASELINES[:1] if label.startswith(BASELINES[1:]) else BASELINES)
            if other_dataset != dataset or label.startswith(BASELINES[0]) or not is_baseline:
                continue
            found = paired_difference(of["earned"], baseline["earned"])
            if found is not None:
                judged.append((dataset, label, other, f"**{judge(found, 1)}**", words(found, 1)))
    return [
        "## From recorded states",
        "The learner maximises the discounted return from states of the data, not the sum of an episode's rewards from "
        f"the robot's rest. Each seed's final policy is played in the simulator from {settings['num_states']} recorded "
        f"states of the dataset, the same for all, for {settings['num_steps']} steps, with a memory of the steps "
        "recorded before (`python -m experiments.values`). *Bias* and *error* are mean and root mean square of the "
        "critics' values less what is then earned.",
        table(("dataset", "method", "seeds", "discounted return", "bias", "error"), measured),
        table(("dataset", "method", "above", "verdict", "numbers"), judged),
    ]
