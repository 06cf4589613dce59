"""The default preset, `tuned`, against no augmentation and unguided samples; not the paper's algorithm.

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

USUAL = flat(plain(PRESETS[DEFAULT_PRESET]))
"""The preset's settings, by dotted name."""

OF_FIT = ("denoiser.optimizer", "fit_seed", "denoiser.num_updates", "denoiser.batch_size")
"""Settings in which a run may differ from the preset and still be one of it; the first two name the fit."""


class Row(NamedTuple):
    """Runs of the preset with one kind of fit, at one benchmark, against one other method."""

    cell: Cell
    fit: tuple[str, ...]
    """Settings of the fit that are not the preset's."""
    other: Cell
    difference: Difference


def rows_of(evidence: Evidence) -> list[Row]:
    """All runs of the default preset against no augmentation and, with any rows, unguided samples of the same seeds."""
    method = f"coda {value_name(USUAL['guidance'])}"
    cells = sorted([*evidence.table, *(cell for cell, _ in evidence.variants)], key=cell_order)
    rows = []
    for cell in cells:
        changed = difference(cell.setup, USUAL)
        if cell.method != method or not set(changed) <= set(OF_FIT):
            continue
        without = evidence.alike(cell, "none")
        unguided = [o for o in cells if (o.benchmark, o.method) == (cell.benchmark, "unconditional")]
        for other in [*([without] if without else []), *unguided]:
            found = paired_difference(cell.returns, other.returns)
            if found is not None:
                rows.append(Row(cell, tuple(changed), other, found))
    return rows


def default_section(evidence: Evidence) -> list[str]:
    """The returns of the preset, and a verdict on each of its differences."""
    rows = rows_of(evidence)
    if not rows:
        return []
    lines = [
        (
            *row.cell.benchmark[1:],
            ", ".join(settings_of(row.cell, [name for name in OF_FIT[:2] if name in row.fit])),
            f"{spread(list(row.cell.returns.values()))} (seeds {seeds_name(list(row.cell.returns))})",
            ", ".join([method_name(row.other.method), *settings_of(row.other, training_changes(row.other))]),
            f"**{judge(row.difference, 1)}**",
            words(row.difference),
        )
        for row in rows
    ]
    header = ("task", "dataset", "other fit", "return", "above", "verdict", "numbers")
    return [
        "## The default preset",
        "`--preset tuned` is not the paper's algorithm (docs/departures.md): it has lambda 1, a first round without "
        "synthetic data, and a critic that learns from recorded rows alone. It was chosen on seeds 4 to 7 of Replay. "
        "Some runs have another fit of the denoiser than the preset's. Unguided samples are compared with whichever "
        "rows they were run.",
        table(header, lines),
    ]


def training_changes(cell: Cell) -> list[str]:
    """The settings of the training, such as the rows of the critic, in which a cell differs from the preset."""
    return [name for name in difference(cell.setup, USUAL) if name.startswith("training.")]


def default_headline(evidence: Evidence) -> str:
    """One line: the preset less no augmentation; of several fits the preset's own, else that with most seeds."""
    best: dict[Benchmark, Row] = {}
    for row in rows_of(evidence):
        known = best.get(row.cell.benchmark)
        if row.other.method == "none" and (known is None or rank(row) > rank(known)):
            best[row.cell.benchmark] = row
    effects = [effect(benchmark, row.difference) for benchmark, row in best.items()]
    text = "; ".join(effects) or "no recorded runs"
    return f"- **The default preset (`{DEFAULT_PRESET}`, not the paper's algorithm) less no augmentation**: {text}."


def rank(row: Row) -> tuple[bool, int]:
    """The preset's own fit above others, then more seeds above fewer."""
    return not row.fit, row.difference.num_seeds
