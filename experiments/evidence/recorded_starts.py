"""What trained policies earn from recorded states, discounted: the objective of the learner, by `experiments.values`.

Episodes on the rest of the page start at the robot's rest, and their rewards count alike. Verdicts follow the rule of
`claims`, over paired seeds that played from the same states.
"""

import json
from pathlib import Path
from typing import Any

from experiments.evidence.claims import judge, words
from experiments.evidence.gathering import DATASET_ORDER
from experiments.evidence.intervals import paired_difference
from experiments.evidence.page_tables import spread, table
from experiments.host.errors import UserError
from experiments.host.records import parse_mapping

FILE = "values.json"
"""The record of `experiments.values`."""

BASELINES = ("no augmentation", "unconditional")
"""How the labels of the methods begin that others are compared with."""

CODA = "CODA"
"""How the labels of CODA's variants begin."""

MEASURES = ("earned", "bias", "error", "slowed")
"""What the tables show: the discounted return; the difference, mean and root mean square, of the critics' values from
it; and the share of plays that have slowed, which older records lack."""

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
        known = [measure for measure in MEASURES if measure in run]
        of_method = found.setdefault((run["dataset"], run["label"]), {measure: {} for measure in known})
        if repeated := set(of_method["earned"]) & set(run["seeds"]):
            raise UserError(f"{file} has seed {min(repeated)} of '{run['label']}' twice, in {name} too; remove one")
        for measure in of_method:
            of_method[measure] |= dict(zip(run["seeds"], run[measure], strict=True))
    return dict(sorted(found.items(), key=lambda item: _order(*item[0])))


def _order(dataset: str, label: str) -> tuple[int, int]:
    """The usual order of datasets, and baselines first."""
    place = DATASET_ORDER.index(dataset) if dataset in DATASET_ORDER else len(DATASET_ORDER)
    return place, next((at for at, name in enumerate(BASELINES) if label.startswith(name)), len(BASELINES))


def recorded_starts_sections(results: Path) -> list[str]:
    """What each method earns, and a verdict on each difference to a baseline, for each record."""
    files = sorted(results.rglob(FILE))
    if not files:
        return []
    return [
        "## From recorded states",
        "The learner maximises the discounted return from states of the data, not the sum of an episode's rewards from "
        "the robot's rest. So each seed's final policy is played in the simulator from recorded states, the same for "
        "all, with a memory of the steps recorded before (`python -m experiments.values`). *Bias* and *error* are mean "
        "and root mean square of the critics' values less what is then earned. A play has *slowed*, as after a fall, "
        "if its last 100 steps earn less than half of its best 100.",
        *(part for file in files for part in section(find_plays(file), settings_of_record(file))),
    ]


def recorded_starts_headline(results: Path) -> str | None:
    """One line: how many variants of CODA earn decidedly more, or less, than no augmentation; None without records."""
    files = list(results.rglob(FILE))
    if not files:
        return None
    plays = find_plays(max(files, key=lambda file: settings_of_record(file)["num_states"]))
    signs: dict[str, list[int]] = {}
    for (dataset, label), of in plays.items():
        without = plays.get((dataset, BASELINES[0]))
        found = paired_difference(of["earned"], without["earned"]) if without and label.startswith(CODA) else None
        if found is not None:
            signs.setdefault(dataset, []).append(found.sign)
    counts = "; ".join(
        f"{dataset} {found.count(1)} above and {found.count(-1)} below, of {len(found)}"
        for dataset, found in signs.items()
    )
    return (
        "- **Discounted return from recorded states, which the learner maximises**, of variants of CODA against no "
        f"augmentation, decided: {counts}."
    )


def settings_of_record(file: Path) -> dict[str, Any]:
    """The settings by which a record was measured."""
    return parse_mapping(file, json.loads, {"settings": dict}, "measure again, or remove it")["settings"]


def section(plays: Plays, settings: dict[str, Any]) -> list[str]:
    """The tables of one record."""
    measured = [
        (dataset, label, str(len(of["earned"])), *(_cell(of, measure) for measure in MEASURES))
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
                less = paired_difference(_percent(of), _percent(baseline))
                slower = words(less) if less is not None else ""
                judged.append((dataset, label, other, f"**{judge(found, 1)}**", words(found, 1), slower))
    return [
        f"### {settings['num_states']} states, {settings['num_steps']} steps",
        table(("dataset", "method", "seeds", "discounted return", "bias", "error", "slowed, %"), measured),
        table(("dataset", "method", "above", "verdict", "discounted return", "slowed, percentage points"), judged),
    ]


def _cell(of: dict[str, dict[int, float]], measure: str) -> str:
    """Mean and standard error; empty where an older record lacks the measure."""
    values = _percent(of) if measure == "slowed" else of[measure]
    return spread(list(values.values()), 1) if values else ""


def _percent(of: dict[str, dict[int, float]]) -> dict[int, float]:
    """The share of plays that have slowed, of each seed; none in an older record."""
    return {seed: 100 * share for seed, share in of.get("slowed", {}).items()}
