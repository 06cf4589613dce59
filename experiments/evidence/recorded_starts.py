"""What trained policies earn from recorded states, discounted: the objective of the learner, by `experiments.values`.

Episodes on the rest of the page start at the robot's rest, and their rewards count alike. Verdicts follow the rule of
`claims`, over paired seeds that played from the same states.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

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

MEASURES = ("earned", "bias", "error", "slowed", "episode")
"""What the tables show: the discounted return; the difference, mean and root mean square, of the critics' values from
it; the share of plays that have slowed; and the return of an episode. Older records lack the last two."""


class Method(NamedTuple):
    """Whose policies played."""

    dataset: str
    label: str
    learner: str
    """Settings of the learner, as `experiments.values` writes them; empty for the usual ones."""

    @property
    def name(self) -> str:
        """The method in a table."""
        return f"{self.label} ({self.learner})" if self.learner else self.label


Plays = dict[Method, dict[str, dict[int, float]]]
"""Each measure of each seed."""


def find_plays(file: Path) -> Plays:
    """The measures of all runs in a record, those of one method put together.

    Raises:
        UserError: the record cannot be read, or two runs of one method have a seed in common.
    """
    record = parse_mapping(file, json.loads, {"settings": dict, "runs": dict}, "measure again, or remove it")
    found: Plays = {}
    for name, run in record["runs"].items():
        known = [measure for measure in MEASURES if measure in run]
        method = Method(run["dataset"], run["label"], run.get("learner", ""))
        of_method = found.setdefault(method, {measure: {} for measure in known})
        if repeated := set(of_method["earned"]) & set(run["seeds"]):
            raise UserError(f"{file} has seed {min(repeated)} of '{run['label']}' twice, in {name} too; remove one")
        for measure in of_method:
            of_method[measure] |= dict(zip(run["seeds"], run[measure], strict=True))
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def _order(method: Method) -> tuple[int, str, int]:
    """The usual order of datasets, and baselines first."""
    dataset, label, learner = method
    place = DATASET_ORDER.index(dataset) if dataset in DATASET_ORDER else len(DATASET_ORDER)
    return place, learner, next((at for at, name in enumerate(BASELINES) if label.startswith(name)), len(BASELINES))


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
        "if its last 100 steps earn less than half of its best 100. The *return of an episode* is a mean over more "
        "episodes than a run's own; older records lack it.",
        *(part for file in files for part in section(find_plays(file), settings_of_record(file))),
    ]


def recorded_starts_headline(results: Path) -> str | None:
    """One line: how many variants of CODA earn decidedly more, or less, than no augmentation; None without records.

    Of several records of a method, that with most states counts.
    """
    files = sorted(results.rglob(FILE))
    if not files:
        return None
    seen: set[Method] = set()
    signs: dict[str, list[int]] = {}
    for file in sorted(files, key=lambda file: settings_of_record(file)["num_states"], reverse=True):
        plays = find_plays(file)
        for method, of in plays.items():
            without = plays.get(method._replace(label=BASELINES[0]))
            if without is None or method in seen or not method.label.startswith(CODA):
                continue
            seen.add(method)
            found = paired_difference(of["earned"], without["earned"])
            if found is not None:
                signs.setdefault(method.dataset, []).append(found.sign)
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
        (method.dataset, method.name, str(len(of["earned"])), *(_cell(of, measure) for measure in MEASURES))
        for method, of in plays.items()
    ]
    judged = []
    for method, of in plays.items():
        is_unguided = method.label.startswith(BASELINES[1:])
        for other, baseline in plays.items():
            is_baseline = other.label.startswith(BASELINES[:1] if is_unguided else BASELINES)
            is_alike = (other.dataset, other.learner) == (method.dataset, method.learner)
            if not (is_baseline and is_alike) or method.label.startswith(BASELINES[0]):
                continue
            found = paired_difference(of["earned"], baseline["earned"])
            if found is not None:
                slower = paired_difference(_measure(of, "slowed"), _measure(baseline, "slowed"))
                episode = paired_difference(_measure(of, "episode"), _measure(baseline, "episode"))
                judged.append(
                    (
                        method.dataset,
                        method.name,
                        other.name,
                        f"**{judge(found, 1)}**",
                        words(found, 1),
                        words(slower) if slower is not None else "",
                        f"**{judge(episode, 1)}**: {words(episode)}" if episode is not None else "",
                    )
                )
    discounted, slowed, episode = "discounted return", "slowed", "return of an episode"
    return [
        f"### {settings['num_states']} states, {settings['num_steps']} steps",
        table(("dataset", "method", "seeds", discounted, "bias", "error", f"{slowed}, %", episode), measured),
        table(("dataset", "method", "above", "verdict", discounted, f"{slowed}, percentage points", episode), judged),
    ]


def _cell(of: dict[str, dict[int, float]], measure: str) -> str:
    """Mean and standard error; empty where an older record lacks the measure."""
    values = list(_measure(of, measure).values())
    return spread(values, 0 if measure == "episode" else 1) if values else ""


def _measure(of: dict[str, dict[int, float]], measure: str) -> dict[int, float]:
    """A measure of each seed, shares in percent; none where an older record lacks it."""
    scale = 100 if measure == "slowed" else 1
    return {seed: scale * value for seed, value in of.get(measure, {}).items()}
