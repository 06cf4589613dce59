"""Tables of returns: Table 1, its differences, aggregates, ablations and fits."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.evidence.ablations import gain_over_fits, several_fits
from experiments.evidence.claims import compare, words
from experiments.evidence.gathering import CODA, COLUMNS, Evidence, method_order
from experiments.evidence.intervals import differences, interquartile_mean, interval, mean, paired_difference
from experiments.evidence.naming import method_name, seeds_name, setting_name, value_name
from experiments.evidence.recorded_runs import Cell


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a single line if there are no rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return "No recorded runs."
    return "\n".join([f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}", *lines])


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Mean +- standard error over seeds."""
    error = f" +- {np.std(values, ddof=1) / np.sqrt(len(values)):,.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):,.{digits}f}{error}"


def settings_of(cell: Cell, names: Iterable[str]) -> list[str]:
    """Settings of a cell with their values, in words."""
    return [f"{setting_name(name)} {value_name(cell.setup[name])}" for name in names]


def methods_of(evidence: Evidence) -> list[str]:
    """All methods of Table 1."""
    return [method for method in COLUMNS if any(cell.method == method for cell in evidence.table)]


def returns_table(evidence: Evidence) -> str:
    """Table 1."""
    methods = methods_of(evidence)
    rows = []
    for benchmark in evidence.benchmarks():
        cells = [evidence.cell(benchmark, method) for method in methods]
        updates = next(cell.summary["updates"] for cell in cells if cell is not None)
        returns = ("" if c is None else f"{spread(list(c.returns.values()))} ({len(c.returns)})" for c in cells)
        draws = evidence.draws(benchmark)
        of_seeds = [f" (seeds {seeds_name(seeds)})" if len(draws) > 1 else "" for seeds in draws.values()]
        columns = [
            "; ".join(f"{value:,.0f}{words}" for value, words in zip(values, of_seeds, strict=True))
            for values in ([draw.mean for draw in draws], [draw.best for draw in draws])
        ]
        rows.append((*benchmark, f"{updates:,}", *returns, *columns))
    names = [f"{method_name(method)} (seeds)" for method in methods]
    return table(("preset", "task", "dataset", "updates", *names, "dataset, mean episode", "best episode"), rows)


def setups(evidence: Evidence) -> str:
    """The settings that matter most, for each preset and task."""
    training = ("training.num_trajectories", "training.evaluation_episodes")
    shown = ("training.mix_ratio", "learner.alpha_bc", "diffusion.num_steps", *training)
    lines = []
    for scope in dict.fromkeys(benchmark[:2] for benchmark in evidence.benchmarks()):
        known: dict[str, Any] = {}
        for cell in evidence.table:
            if cell.benchmark[:2] == scope:
                known |= cell.setup
        values = ", ".join(f"{setting_name(name)} {value_name(known[name])}" for name in shown if name in known)
        lines.append(f"- {scope[0]}, {scope[1]}: {values}")
    return "\n".join(lines)


def differences_table(evidence: Evidence) -> str:
    """All methods against the baselines, and the oracle and CODA at another lambda against CODA."""
    rows = []
    for benchmark in evidence.benchmarks():
        for method in methods_of(evidence):
            others = [other for other in ("none", "unconditional", CODA) if method_order(other) < method_order(method)]
            for other in others:
                a, b = evidence.cell(benchmark, method), evidence.cell(benchmark, other)
                if a and b:
                    pair = f"{method_name(method)} - {method_name(other)}"
                    rows.append(
                        (*benchmark, pair, words(compare(evidence, benchmark, method, other)), by_draw(evidence, a, b))
                    )
    return table(("preset", "task", "dataset", "methods", "difference", "in each draw of the dataset"), rows)


def by_draw(evidence: Evidence, a: Cell, b: Cell) -> str:
    """The mean difference of two cells in each draw of the dataset; empty if there is only one draw."""
    draws = evidence.draws(a.benchmark)
    parts = []
    found = differences(a.returns, b.returns)
    for seeds in draws.values():
        shared = [seed for seed in seeds if seed in found]
        if shared and len(draws) > 1:
            parts.append(f"{np.mean([found[seed] for seed in shared]):+,.0f} (seeds {seeds_name(shared)})")
    return "; ".join(parts)


def aggregate_table(evidence: Evidence) -> str:
    """Means over the datasets of a preset that have the three methods, over the common seeds."""
    rows = []
    for preset in dict.fromkeys(benchmark[0] for benchmark in evidence.benchmarks()):
        benchmarks, methods = evidence.complete(preset)
        seeds = (
            sorted(set.intersection(*(set(evidence.shared(benchmark, methods)) for benchmark in benchmarks)))
            if benchmarks
            else []
        )
        for method in methods if len(seeds) > 1 else []:
            cells = [cell for benchmark in benchmarks if (cell := evidence.cell(benchmark, method)) is not None]
            scores = [evidence.normalised(cell) for cell in cells]
            table_of_scores = np.array([[score[seed] for score in scores] for seed in seeds])
            found = [interval(table_of_scores, statistic) for statistic in (interquartile_mean, mean)]
            values = (f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in found)
            rows.append((preset, method_name(method), str(len(benchmarks)), seeds_name(seeds), *values))
    return table(("preset", "method", "datasets", "seeds", "interquartile mean [95 %]", "mean [95 %]"), rows)


def variants_table(evidence: Evidence) -> str:
    """Cells outside Table 1, minus the method that they vary, and minus the baselines with the same settings."""
    rows = []
    for cell, names in evidence.variants:
        baselines = [
            None if method == cell.method else evidence.alike(cell, method) for method in ("none", "unconditional")
        ]
        rows.append(
            (
                *cell.benchmark,
                method_name(cell.method),
                ", ".join(settings_of(cell, names)),
                f"{cell.summary['updates']:,}",
                f"{spread(list(cell.returns.values()))} ({len(cell.returns)})",
                *(
                    "" if other is None else words(paired_difference(cell.returns, other.returns))
                    for other in (evidence.reference(cell), *baselines)
                ),
            )
        )
    return table(
        (
            *("preset", "task", "dataset", "method", "other settings", "updates", "return (seeds)"),
            *("minus Table 1's", "minus no augmentation, same settings", "minus unconditional, same settings"),
        ),
        rows,
    )


def fits_table(evidence: Evidence) -> str:
    """Standard deviation of the mean return between fits of the denoiser, and its null value."""
    rows = [
        (
            *fits.benchmark,
            method_name(fits.method),
            seeds_name(list(fits.seeds)),
            "; ".join(f"{value:,.0f} (fit {fit})" for fit, value in zip(fits.fit_seeds, fits.means, strict=True)),
            f"{fits.spread:,.0f}",
            f"{fits.null_std:,.0f}",
            f"{fits.p:.2f}",
        )
        for fits in several_fits(evidence)
    ]
    header = ("preset", "task", "dataset", "method", "seeds", "mean return of each fit")
    return table((*header, "standard deviation over fits", "null standard deviation", "p"), rows)


def fits_gains(evidence: Evidence) -> str:
    """For each method with several fits, the gain over no augmentation of each seed's mean over fits."""
    members = dict.fromkeys((fits.benchmark, fits.method) for fits in several_fits(evidence))
    return "\n".join(
        f"- {' '.join(benchmark)}: {method_name(method)} - {method_name('none')}: "
        f"{words(gain_over_fits(evidence, benchmark, method))}"
        for benchmark, method in members
    )
