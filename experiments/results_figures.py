"""The pictures of RESULTS.md: Figure 3, Figure 4, Figures 5 to 8 and ablations, drawn from what is kept."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.evidence import Evidence, Place, method_order
from experiments.figures import comparison_curves, likelihood_curves, panels
from experiments.kept_runs import METHODS, SETTINGS, Cell, dataset_name
from experiments.steering_curves import draw_likelihood, draw_quality


def method_name(method: str) -> str:
    """A method in words."""
    name, _, guidance = method.partition(" ")
    return METHODS[name] + (f", λ = {guidance}" if guidance else "")


def draw_all(evidence: Evidence, folder: Path) -> list[str]:
    """Draws every picture there is evidence for, and returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for preset in dict.fromkeys(place[0] for place in evidence.places()):
        if evidence.complete(preset)[0]:
            names.append(f"figure4_{preset}.png")
            draw_bars(folder / names[-1], evidence, preset)
    for place in evidence.places():
        cells = [cell for cell in evidence.table if cell.place == place]
        curves = [(method_name(cell.method), cell.metrics) for cell in cells]
        title, stem = " ".join(place[1:]), "_".join(place)
        names += [f"returns_{stem}.png", f"likelihood_{stem}.png"]
        comparison_curves(folder / names[-2], title, curves, float(np.mean(evidence.draws(place), axis=0)[0]))
        likelihood_curves(folder / names[-1], title, curves)
        if panels_of(evidence, place):
            names.append(f"ablations_{stem}.png")
            draw_ablations(folder / names[-1], evidence, place)
    for run in evidence.steering:
        summary, stem = run.summary, run.name
        names += [f"{stem}_likelihood.png", f"{stem}_quality.png"]
        title = f"{summary['task']} {dataset_name(summary)}"
        draw_likelihood(folder / names[-2], title, run.points, summary["highest_log_likelihood"])
        real = {name: errors["dynamics_error"] for name, errors in summary["real"].items() if name != "real"}
        draw_quality(folder / names[-1], title, run.points, real)
    return names


def draw_bars(path: Path, evidence: Evidence, preset: str) -> None:
    """Figure 4: each method's final return, normalised within its dataset, with the standard error over seeds."""
    places, methods = evidence.complete(preset)
    width = 0.8 / len(methods)
    with panels(path, 1, 1, (max(6.0, 1.8 * len(places)), 4.0)) as grid:
        axes = grid[0, 0]
        for number, method in enumerate(methods):
            for position, place in enumerate(places):
                cell = evidence.cell(place, method)
                if cell is None:
                    continue
                values = np.array(list(evidence.normalised(cell).values()))
                error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
                at = position + (number - (len(methods) - 1) / 2) * width
                axes.bar(at, values.mean(), 0.9 * width, yerr=error, color=f"C{number}", capsize=2)
            axes.bar(0, 0, color=f"C{number}", label=method_name(method))
        axes.axhline(1.0, color="0.4", linestyle="--", linewidth=1.0, label="dataset, best episode")
        axes.set_xticks(range(len(places)), [f"{task}\n{dataset}" for _, task, dataset in places])
        axes.set(title=f"Final returns, {preset} preset", ylabel="return (0: untrained, 1: best episode)")
        axes.legend(loc="best", fontsize=8)


def panels_of(evidence: Evidence, place: Place) -> dict[str, dict[str, dict[Any, Cell]]]:
    """Setting -> method -> value -> cell, for settings of which something was run with only that one changed."""
    found: dict[str, dict[str, dict[Any, Cell]]] = {}
    for cell, names in evidence.variants:
        if cell.place != place or len(names) > 1:
            continue
        if names:
            values = found.setdefault(names[0], {}).setdefault(cell.method, {})
            alone = evidence.cell(place, cell.method)
            values |= {other.setup[names[0]]: other for other in (cell, alone) if other is not None}
        else:
            values = found.setdefault("guidance", {}).setdefault("coda", {})
            codas = (other for other in evidence.table if other.place == place and other.method.startswith("coda "))
            values |= {float(other.method.removeprefix("coda ")): other for other in (cell, *codas)}
    return dict(sorted(found.items()))


def draw_ablations(path: Path, evidence: Evidence, place: Place) -> None:
    """Return against the value of each setting that was changed alone, mean and standard error over seeds.

    A method that does not know the setting is a line across; one that was not run with other values is left out.
    """
    grids = panels_of(evidence, place)
    members = [cell for cell in evidence.table if cell.place == place]
    used = {cell.method for cell in members} | {method for lines in grids.values() for method in lines}
    names = sorted({method.partition(" ")[0] for method in used}, key=method_order)
    with panels(path, 1, len(grids), (3.0 * len(grids) + 2.0, 3.6)) as grid:
        for axes, (setting, lines) in zip(grid[0], grids.items(), strict=True):
            values = sorted({value for line in lines.values() for value in line})
            for method, line in lines.items():
                name = method.partition(" ")[0]
                known = [value for value in values if value in line]
                returns = [np.array(list(line[value].returns.values())) for value in known]
                axes.errorbar(
                    [values.index(value) for value in known],
                    [r.mean() for r in returns],
                    [r.std(ddof=1) / np.sqrt(len(r)) if len(r) > 1 else 0.0 for r in returns],
                    color=f"C{names.index(name)}",
                    linestyle="none" if setting == "fit_seed" else "-",
                    marker="o",
                    capsize=3,
                    label=METHODS[name],
                )
            for cell in members:
                if setting not in cell.setup and not cell.method.startswith("coda"):
                    style: dict[str, Any] = {"color": f"C{names.index(cell.method)}", "label": METHODS[cell.method]}
                    axes.axhline(np.mean(list(cell.returns.values())), linestyle="--", linewidth=1.2, **style)
            axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
            words = "lambda" if setting == "guidance" else SETTINGS.get(setting, setting)
            axes.set(xlabel=words, xlim=(-0.5, len(values) - 0.5))
        limits = [limit for axes in grid[0] for limit in axes.get_ylim()]
        handles: dict[str, Any] = {}
        for axes in grid[0]:
            axes.set_ylim(min(limits), max(limits))
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        shown = [METHODS[name] for name in names if METHODS[name] in handles]
        figure = grid[0, 0].figure
        figure.legend([handles[name] for name in shown], shown, loc="outside right upper", fontsize=8)
        figure.suptitle(" ".join(place[1:]))
        grid[0, 0].set(ylabel="return of an episode")
