"""The pictures of RESULTS.md: Figure 3, Figure 4, Figures 5 to 8 and ablations, drawn from the recorded runs."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.evidence.ablations import Ablation, ablations, drawn_variants, line_of, value_of
from experiments.evidence.gathering import CODA, COLUMNS, Evidence, in_order, method_order
from experiments.evidence.naming import method_name, seeds_name, setting_name, value_name
from experiments.evidence.own_presets import FIGURE, OWN, best_fit, rows_of, training_changes
from experiments.evidence.page_tables import settings_of
from experiments.evidence.recorded_runs import Cell, dataset_name
from experiments.guidance.curves import draw_likelihood, draw_quality, draw_selection
from experiments.host.plots import comparison_curves, likelihood_curves, mean_curve, panels

STYLES = {
    "none": {"color": "C0", "linestyle": ":"},
    "unconditional": {"color": "C1", "linestyle": "--"},
    "model": {"color": "C2", "linestyle": "-."},
}
"""How the methods look that presets are judged by."""


def draw_all(evidence: Evidence, folder: Path) -> list[str]:
    """Draws every figure that the evidence allows, and returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for preset in dict.fromkeys(benchmark[0] for benchmark in evidence.benchmarks()):
        if evidence.complete(preset)[0]:
            names.append(f"figure4_{preset}.png")
            draw_bars(folder / names[-1], evidence, preset)
    for benchmark in evidence.benchmarks():
        cells = [cell for cell in evidence.table if cell.benchmark == benchmark]
        seeds = sorted({seed for cell in cells for seed in cell.returns})
        curves = [(method_name(cell.method) + _of_seeds(cell, seeds), cell.metrics) for cell in cells]
        title, stem = " ".join(benchmark[1:]), "_".join(benchmark)
        names += [f"returns_{stem}.png", f"likelihood_{stem}.png"]
        comparison_curves(folder / names[-2], title, curves, [draw.mean for draw in evidence.draws(benchmark)])
        likelihood_curves(folder / names[-1], title, curves)
        if found := ablations(evidence, benchmark):
            names.append(f"ablations_{stem}.png")
            draw_ablations(folder / names[-1], title, found, [cell.method for cell in cells])
        if changed := drawn_variants(evidence, benchmark):
            names.append(f"variants_{stem}.png")
            draw_variants(folder / names[-1], title, changed, cells)
    if any(rows_of(evidence, preset) for preset in OWN):
        names.append(FIGURE)
        draw_own_presets(folder / FIGURE, evidence)
    for run in evidence.steering:
        summary, stem = run.summary, run.name
        names += [f"{stem}_{kind}.png" for kind in run.figures]
        title = f"{summary['task']} {dataset_name(summary)}, {run.guidance}"
        draw_likelihood(folder / f"{stem}_likelihood.png", title, run.points, summary["highest_log_likelihood"])
        real = {name: errors["dynamics_error"] for name, errors in summary["real"].items() if name != "real"}
        draw_quality(folder / f"{stem}_quality.png", title, run.points, real)
        if "selection" in run.figures:
            draw_selection(folder / f"{stem}_selection.png", title, run.points, summary["selection"])
    return names


def draw_own_presets(path: Path, evidence: Evidence) -> None:
    """Learning curves of the presets of our own and of what they are judged by: a row a preset, a column a dataset."""
    found = {preset: best_fit(rows) for preset in OWN if (rows := rows_of(evidence, preset))}
    benchmarks = [b for b in evidence.benchmarks() if any(b in of_preset for of_preset in found.values())]
    with panels(path, len(found), len(benchmarks), (4.2 * len(benchmarks), 3.6 * len(found))) as grid:
        for line, (preset, of_preset) in zip(grid, found.items(), strict=True):
            for axes, benchmark in zip(line, benchmarks, strict=True):
                rows = of_preset.get(benchmark, [])
                for row in rows:
                    style = STYLES[row.other.method]
                    rest = settings_of(row.other, training_changes(row.other, preset))
                    mean_curve(
                        axes, ", ".join([method_name(row.other.method), *rest]), row.other.metrics, "return", **style
                    )
                if rows:
                    mean_curve(axes, preset, rows[0].cell.metrics, "return", color="C3")
                    axes.legend(loc="lower right", fontsize=6)
                    axes.set(title=f"{preset}: {' '.join(benchmark[1:])}", xlabel="learner updates")
                else:
                    axes.set_axis_off()
            line[0].set(ylabel="return of an episode")


def draw_bars(path: Path, evidence: Evidence, preset: str) -> None:
    """Figure 4: final returns, normalised within a dataset, with the standard error over the common seeds."""
    benchmarks, methods = evidence.complete(preset)
    width = 0.8 / len(methods)
    with panels(path, 1, 1, (max(6.0, 1.8 * len(benchmarks)), 4.0)) as grid:
        axes = grid[0, 0]
        for number, method in enumerate(methods):
            for position, benchmark in enumerate(benchmarks):
                cell = evidence.cell(benchmark, method)
                if cell is None:
                    continue
                scores = evidence.normalised(cell)
                values = np.array([scores[seed] for seed in evidence.shared(benchmark, methods)])
                error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
                at = position + (number - (len(methods) - 1) / 2) * width
                axes.bar(at, values.mean(), 0.9 * width, yerr=error, color=f"C{number}", capsize=2)
            axes.bar(0, 0, color=f"C{number}", label=method_name(method))
        axes.axhline(1.0, color="0.4", linestyle="--", linewidth=1.0, label="dataset, best episode")
        axes.set_xticks(range(len(benchmarks)), [f"{task}\n{dataset}" for _, task, dataset in benchmarks])
        axes.set(title=f"Final returns, {preset} preset", ylabel="return (0: untrained, 1: best episode)")
        axes.legend(loc="best", fontsize=8)


def draw_ablations(path: Path, title: str, found: Sequence[Ablation], methods: Sequence[str]) -> None:
    """The gain over no augmentation against each setting that was changed alone: mean and standard error.

    Methods have the same colours as in the learning curves.
    """
    colours = {"coda": f"C{methods.index(CODA)}"} if CODA in methods else {}
    colours |= {method: f"C{number}" for number, method in enumerate(methods)}
    with panels(path, 1, len(found), (3.0 * len(found) + 2.0, 3.6)) as grid:
        handles: dict[str, Any] = {}
        for axes, ablation in zip(grid[0], found, strict=True):
            for method, line in ablation.lines.items():
                gains = [line[value] for value in ablation.values if value in line]
                axes.errorbar(
                    [at for at, value in enumerate(ablation.values) if value in line],
                    [g.mean() for g in gains],
                    [g.std(ddof=1) / np.sqrt(len(g)) if len(g) > 1 else 0.0 for g in gains],
                    color=colours.get(method, "0.5"),
                    marker="o",
                    capsize=3,
                    label=method_name(method),
                )
            for method, gains in ablation.across.items():
                axes.axhline(gains.mean(), color=colours[method], linestyle="--", label=method_name(method))
            axes.axhline(0.0, color="C0", linewidth=1.0, label=method_name("none"))
            axes.set_xticks(range(len(ablation.values)), [value.replace("_", "\n") for value in ablation.values])
            axes.set(xlabel=setting_name(ablation.setting), xlim=(-0.5, len(ablation.values) - 0.5))
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        limits = [limit for axes in grid[0] for limit in axes.get_ylim()]
        for axes in grid[0]:
            axes.set_ylim(min(limits), max(limits))
        grid[0, 0].set(ylabel="gain over no augmentation")
        figure = grid[0, 0].figure
        shown = [name for name in map(method_name, (*COLUMNS, "coda")) if name in handles]
        figure.legend([handles[name] for name in shown], shown, loc="outside right upper", fontsize=8)
        figure.suptitle(title)


def draw_variants(
    path: Path, title: str, changed: Mapping[tuple[str, ...], Sequence[Cell]], table: Sequence[Cell]
) -> None:
    """Learning curves of variants and of Table 1; colours show values, line styles methods."""
    dashes = {"none": ":", "unconditional": "--", "simulated": "-.", CODA: "-"}
    other_lambda = (0, (4, 1))
    columns = min(3, len(changed))
    rows = -(-len(changed) // columns)
    seeds = sorted({seed for cell in table for seed in cell.returns})
    with panels(path, rows, columns, (4.2 * columns, 3.8 * rows)) as grid:
        for axes in grid.flat[len(changed) :]:
            axes.remove()
        used = grid.flat[: len(changed)]
        for axes, (settings, variants) in zip(used, changed.items(), strict=True):
            varied = {line_of(cell, settings) for cell in variants}
            shown = [(cell, _values(cell, settings)) for cell in table if line_of(cell, settings) in varied]
            shown += [(cell, _values(cell, settings)) for cell in variants]
            values = sorted({value for _, value in shown}, key=lambda value: [*map(in_order, value)])
            for cell, value in sorted(shown, key=lambda pair: (method_order(pair[0].method), values.index(pair[1]))):
                named = [value_name(v) for v, name in zip(value, settings, strict=True) if name != "guidance"]
                label = textwrap.fill(", ".join([method_name(cell.method), *named]) + _of_seeds(cell, seeds), 38)
                colour, dash = f"C{values.index(value) + 1}", dashes.get(cell.method, other_lambda)
                mean_curve(axes, label, cell.metrics, "return", color=colour, linestyle=dash)
            for cell in table:
                if cell.method == "none" and "none" not in varied:
                    mean_curve(axes, method_name("none"), cell.metrics, "return", color="C0", linestyle=dashes["none"])
            axes.set_title(textwrap.fill(", ".join(map(setting_name, settings)), 45), fontsize=9)
            axes.set(xlabel="learner updates", ylabel="return of an episode")
            axes.legend(loc="best", fontsize=7, handlelength=3.0)
        limits = [limit for axes in used for limit in axes.get_ylim()]
        for axes in used:
            axes.set_ylim(min(limits), max(limits))
        used[0].figure.suptitle(title)


def _of_seeds(cell: Cell, seeds: Sequence[int]) -> str:
    """The seeds of a curve, if it lacks some of the benchmark's; else nothing."""
    return "" if list(cell.returns) == list(seeds) else f" (seeds {seeds_name(list(cell.returns))})"


def _values(cell: Cell, settings: Sequence[str]) -> tuple[Any, ...]:
    return tuple(value_of(cell, setting) for setting in settings)
