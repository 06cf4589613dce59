"""Tables of returns: Table 1, its differences, aggregates, ablations and fits."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.claims import compare, words
from experiments.evidence import CODA, Evidence, method_order
from experiments.intervals import interquartile_mean, interval, paired_difference
from experiments.kept_runs import SETTINGS
from experiments.results_figures import method_name


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a line instead where there are no rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return "No runs are kept that this can be told of."
    return "\n".join([f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}", *lines])


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Mean +- standard error over seeds."""
    error = f" +- {np.std(values, ddof=1) / np.sqrt(len(values)):,.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):,.{digits}f}{error}"


def methods_of(evidence: Evidence) -> list[str]:
    """All methods of Table 1."""
    return sorted({cell.method for cell in evidence.table}, key=method_order)


def returns_table(evidence: Evidence) -> str:
    """Table 1."""
    methods = methods_of(evidence)
    rows = []
    for place in evidence.places():
        cells = [evidence.cell(place, method) for method in methods]
        known = next(cell for cell in cells if cell is not None)
        values = ("" if c is None else f"{spread(list(c.returns.values()))} ({len(c.returns)})" for c in cells)
        mean, best = (
            " and ".join(f"{value:,.0f}" for value in values) for values in zip(*evidence.draws(place), strict=True)
        )
        rows.append((place[0], place[1], place[2], f"{known.summary['updates']:,}", *values, mean, best))
    names = [f"{method_name(method)} (seeds)" for method in methods]
    return table(("preset", "task", "dataset", "updates", *names, "dataset, mean episode", "best episode"), rows)


def setups(evidence: Evidence) -> str:
    """The settings that matter most, for each preset and task."""
    training = ("training.num_trajectories", "training.evaluation_episodes")
    shown = ("training.mix_ratio", "learner.alpha_bc", "diffusion.num_steps", *training)
    lines = []
    for scope in dict.fromkeys(place[:2] for place in evidence.places()):
        known: dict[str, Any] = {}
        for cell in evidence.table:
            if cell.place[:2] == scope:
                known |= cell.setup
        values = ", ".join(f"{SETTINGS[name]} {known[name]}" for name in shown if name in known)
        lines.append(f"- {scope[0]}, {scope[1]}: {values}")
    return "\n".join(lines)


def differences_table(evidence: Evidence) -> str:
    """All methods against the baselines, and the oracle and CODA at another lambda against CODA."""
    rows = []
    for place in evidence.places():
        for method in methods_of(evidence):
            others = [other for other in ("none", "unconditional", CODA) if method_order(other) < method_order(method)]
            for other in others:
                if evidence.cell(place, method) and evidence.cell(place, other):
                    found = compare(evidence, place, method, other)
                    pair = f"{method_name(method)} - {method_name(other)}"
                    rows.append((*place, pair, words(found)))
    return table(("preset", "task", "dataset", "methods", "difference"), rows)


def aggregate_table(evidence: Evidence) -> str:
    """Interquartile means over the datasets of a preset that have the three methods, by the seeds they all have."""
    rows = []
    for preset in dict.fromkeys(place[0] for place in evidence.places()):
        places, methods = evidence.complete(preset)
        for method in methods:
            cells = [cell for place in places if (cell := evidence.cell(place, method)) is not None]
            scores = [evidence.normalised(cell) for cell in cells]
            seeds = sorted(set.intersection(*map(set, scores)))
            if seeds:
                found = interval(np.array([[score[seed] for score in scores] for seed in seeds]), interquartile_mean)
                bounds = f" [{found.low:.2f}, {found.high:.2f}]" if len(seeds) > 1 else ""
                values = f"{found.value:.2f}{bounds}"
                rows.append((preset, method_name(method), str(len(places)), str(len(seeds)), values))
    return table(("preset", "method", "datasets", "seeds each", "interquartile mean [95 %]"), rows)


def variants_table(evidence: Evidence) -> str:
    """Cells that are not in Table 1, less what they are a variant of, and less the baselines with their settings."""
    rows = []
    for cell, names in evidence.variants:
        settings = ", ".join(f"{SETTINGS.get(name, name)} {cell.setup[name]}" for name in names)
        values = f"{spread(list(cell.returns.values()))} ({len(cell.returns)})"
        others = [evidence.alike(cell, method) for method in ("none", "unconditional") if method != cell.method]
        others = [evidence.reference(cell), *others, None][:3]
        rows.append(
            (
                *cell.place,
                method_name(cell.method),
                settings,
                f"{cell.summary['updates']:,}",
                values,
                *("" if other is None else words(paired_difference(cell.returns, other.returns)) for other in others),
            )
        )
    return table(
        (
            *("preset", "task", "dataset", "method", "other settings", "updates", "return (seeds)"),
            *("less Table 1's", "less no augmentation, same settings", "less unconditional, same settings"),
        ),
        rows,
    )


def fits_table(evidence: Evidence) -> str:
    """How far returns with several fits of the denoiser lie apart, beside how far the seeds alone would put them."""
    rows = []
    for cell in evidence.table:
        fits = {cell.setup["fit_seed"]: cell} if "fit_seed" in cell.setup else {}
        for other, names in evidence.variants:
            if names == ("fit_seed",) and (other.place, other.method) == (cell.place, cell.method):
                fits[other.setup["fit_seed"]] = other
        if len(fits) > 1:
            returns = [np.array(list(fits[seed].returns.values())) for seed in sorted(fits)]
            means = np.array([values.mean() for values in returns])
            errors = np.array([values.std(ddof=1) / np.sqrt(len(values)) for values in returns])
            numbers = (
                ", ".join(f"{value:,.0f}" for value in means),
                f"{means.mean():,.0f}",
                f"{means.std(ddof=1):,.0f}",
                f"{np.sqrt(np.mean(errors**2)):,.0f}",
            )
            rows.append((*cell.place, method_name(cell.method), str(len(fits)), *numbers))
    header = ("preset", "task", "dataset", "method", "fits", "return of each", "mean", "standard deviation over fits")
    return table((*header, "standard error over a fit's seeds"), rows)
