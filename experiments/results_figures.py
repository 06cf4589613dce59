"""The pictures of RESULTS.md: Figure 3, Figure 4 and Figures 5 to 8, drawn from what is kept."""

from pathlib import Path

import numpy as np

from experiments.evidence import Evidence
from experiments.figures import comparison_curves, likelihood_curves, panels
from experiments.kept_runs import METHODS, dataset_name
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
        comparison_curves(folder / names[-2], title, curves, cells[0].summary["dataset_mean_return"])
        likelihood_curves(folder / names[-1], title, curves)
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
