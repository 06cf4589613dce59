"""The presets of our own against no augmentation, unguided samples and the model alone.

Verdicts follow the rule of `claims`, over paired seeds.
"""

from typing import NamedTuple

from experiments.evidence.claims import effect, judge, words
from experiments.evidence.gathering import Benchmark, Evidence, cell_order
from experiments.evidence.intervals import Difference, paired_difference
from experiments.evidence.naming import method_name, seeds_name, value_name
from experiments.evidence.page_tables import settings_of, spread, table
from experiments.evidence.recorded_runs import Cell, difference
from experiments.host.cache import flat, plain
from experiments.pipeline.settings import DEFAULT_PRESET, PRESETS

OWN = {name: flat(plain(PRESETS[name])) for name in (DEFAULT_PRESET, "plus")}
"""Presets that are not the paper's algorithm, with their settings by dotted name."""

OF_FIT = ("denoiser.optimizer", "fit_seed", "denoiser.num_updates", "denoiser.batch_size")
"""Settings in which a run may differ from the preset and still be one of it; the first two name the fit."""

FIGURE = "own_presets.png"
"""The picture of the learning curves."""


class Row(NamedTuple):
    """Runs of the preset with one kind of fit, at one benchmark, against one other method."""

    cell: Cell
    fit: tuple[str, ...]
    """Settings of the fit that are not the preset's."""
    other: Cell
    difference: Difference


def rows_of(evidence: Evidence, preset: str) -> list[Row]:
    """All runs with a preset's settings against others of the same seeds and learner; of unguided samples, any rows."""
    usual = OWN[preset]
    method = f"coda {value_name(usual['guidance'])}"
    cells = sorted([*evidence.table, *(cell for cell, _ in evidence.variants)], key=cell_order)
    rows = []
    for cell in cells:
        changed = difference(cell.setup, usual)
        if cell.method != method or not set(changed) <= set(OF_FIT):
            continue
        without, alone = (evidence.alike(cell, method) for method in ("none", "model"))
        unguided = [
            other
            for other in cells
            if (other.benchmark, other.method) == (cell.benchmark, "unconditional")
            and not any(name.startswith("learner.") for name in difference(other.setup, cell.setup))
        ]
        for other in filter(None, (without, *unguided, alone)):
            found = paired_difference(cell.returns, other.returns)
            if found is not None:
                rows.append(Row(cell, tuple(changed), other, found))
    return rows


def best_fit(rows: list[Row]) -> dict[Benchmark, list[Row]]:
    """The rows of each benchmark with one fit: of several fits the preset's own, else that with most seeds."""
    best: dict[Benchmark, Row] = {}
    for row in rows:
        known = best.get(row.cell.benchmark)
        if known is None or rank(row) > rank(known):
            best[row.cell.benchmark] = row
    return {benchmark: [row for row in rows if row.cell is of.cell] for benchmark, of in best.items()}


def own_presets_section(evidence: Evidence, link: str) -> list[str]:
    """The returns of the presets, and a verdict on each of their differences; `link` is the folder of figures."""
    lines = [
        (
            preset,
            *row.cell.benchmark[1:],
            ", ".join(settings_of(row.cell, [name for name in OF_FIT[:2] if name in row.fit])),
            f"{spread(list(row.cell.returns.values()))} (seeds {seeds_name(list(row.cell.returns))})",
            ", ".join([method_name(row.other.method), *settings_of(row.other, training_changes(row.other, preset))]),
            f"**{judge(row.difference, 1)}**",
            words(row.difference),
        )
        for preset in OWN
        for row in rows_of(evidence, preset)
    ]
    if not lines:
        return []
    header = ("preset", "task", "dataset", "other fit", "return", "above", "verdict", "numbers")
    return [
        "## Presets of our own",
        "`tuned` and `plus` (CODA+) are not the paper's algorithm (docs/departures.md). `tuned` has lambda 1, a first "
        "round without synthetic data, and a critic that learns from recorded rows alone; it was chosen on seeds 4 to "
        "7 of Replay. `plus` has all rows for the critic, starts at recorded states, and noise on the guided actions, "
        "whose consequences a one-step model gives; its parts were chosen by runs on seeds 8 to 11, and seeds 12 to 15 "
        "took no part. Some runs have another fit of the denoiser than the preset's. Unguided samples are compared "
        "with whichever rows they were run.",
        table(header, lines),
        "Learning curves; bands are one standard error over seeds:",
        f"![returns]({link}/{FIGURE})",
    ]


def training_changes(cell: Cell, preset: str) -> list[str]:
    """The settings of the training, such as the rows of the critic, in which a cell differs from a preset."""
    return [name for name in difference(cell.setup, OWN[preset]) if name.startswith("training.")]


def default_headline(evidence: Evidence) -> str:
    """One line: the preset less no augmentation; of several fits the preset's own, else that with most seeds."""
    without = [row for row in rows_of(evidence, DEFAULT_PRESET) if row.other.method == "none"]
    effects = [effect(benchmark, best.difference) for benchmark, (best, *_) in best_fit(without).items()]
    text = "; ".join(effects) or "no recorded runs"
    return f"- **The default preset (`{DEFAULT_PRESET}`, not the paper's algorithm) less no augmentation**: {text}."


def rank(row: Row) -> tuple[bool, int]:
    """The preset's own fit above others, then more seeds above fewer."""
    return not row.fit, row.difference.num_seeds
