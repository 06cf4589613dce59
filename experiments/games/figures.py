"""Figures of a run on a polynomial game."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from numpy.polynomial import polynomial

from coda_jax.envs.polynomial import DatasetConfig, PolynomialGame, optima
from experiments.games.methods import CODA_METHODS, STATIC_METHODS, TRUE_GRADIENT
from experiments.games.theory import tilted_masses
from experiments.games.training import Results
from experiments.host.plots import panels

COLOURS = {
    TRUE_GRADIENT: "0.25",
    "none": "C0",
    "unconditional": "C4",
    "q-conditioned": "C1",
    "coda": "C3",
    "coda-guided": "C2",
}
LINES = {"unconditional": "--", "coda-guided": "--"}
"""Dashes for methods whose line coincides with another."""
LABELS = {
    TRUE_GRADIENT: "true gradient",
    "none": "no augmentation",
    "unconditional": "unconditional",
    "q-conditioned": "Q-conditioned",
    "coda": "CODA, conditioned (CFG)",
    "coda-guided": "CODA, policy-guided (Alg. 1)",
}
CELLS = 50
"""Cells a side of the quadrature of Eq. 15."""


def draw_surface(axes: Axes, game: PolynomialGame) -> None:
    """The reward over the square, darker where it is higher, and its optima.

    All shades cover equal areas, because Twin Peaks falls to -9 in two corners, and its peaks are only 0.56 high.
    """
    grid = np.linspace(-1.0, 1.0, 101)
    value = polynomial.polygrid2d(grid, grid, np.asarray(game.coefficients))
    levels = np.unique(np.quantile(value, np.linspace(0.0, 1.0, 25)))
    shades = mpl.colormaps["Greys"](np.linspace(0.0, 0.5, len(levels) - 1))
    axes.contourf(grid, grid, value.T, levels=levels, colors=shades, zorder=0)
    for x, y in optima(game)[0]:
        axes.plot(x, y, marker="*", markersize=13, color="gold", markeredgecolor="k", clip_on=False, zorder=5)
    frame_square(axes)


def frame_square(axes: Axes) -> None:
    """The square of joint actions, with few ticks."""
    ticks = (-1.0, -0.5, 0.0, 0.5, 1.0)
    axes.set(xlim=(-1, 1), ylim=(-1, 1), xticks=ticks, yticks=ticks, aspect="equal", xlabel="$a^x$", ylabel="$a^y$")
    axes.grid(False)


def draw_methods(path: Path, game: PolynomialGame, dataset: DatasetConfig, results: Results, returns: dict) -> None:
    """Figure 1 or 2: the data, every seed's policy path, and return against updates (mean, least and greatest)."""
    best = optima(game)[1]
    with panels(path, 1, 3, (13.0, 4.2)) as axes:
        surface, paths, curves = axes[0]
        data = results.data["none"][0]
        draw_surface(surface, game)
        surface.scatter(*data[:1500].T, s=2, color="C0", alpha=0.5, linewidths=0)
        surface.set(title=f"{dataset.name} data (one draw), mean ({data[:, 0].mean():.2f}, {data[:, 1].mean():.2f})")
        draw_surface(paths, game)
        for method in (*STATIC_METHODS, *CODA_METHODS):
            theta = results.paths[method].theta
            for seed in theta.reshape(-1, *theta.shape[2:]):
                paths.plot(*seed.T, color=COLOURS[method], linestyle=LINES.get(method, "-"), linewidth=0.8, alpha=0.7)
                paths.plot(*seed[-1], marker="o", markersize=4, color=COLOURS[method], clip_on=False, zorder=4)
        paths.plot(*theta[0, 0, 0], marker="s", markersize=6, color="k", zorder=6)
        paths.set(title="policy from the start (square) to the end (dots)")
        for method in (*STATIC_METHODS, *CODA_METHODS):
            values = returns[method].reshape(-1, returns[method].shape[-1])
            updates = np.arange(values.shape[-1])
            curves.fill_between(updates, values.min(0), values.max(0), color=COLOURS[method], alpha=0.15, linewidth=0)
            line = {"color": COLOURS[method], "linestyle": LINES.get(method, "-"), "label": LABELS[method]}
            curves.plot(updates, values.mean(0), linewidth=1.8, **line)
        curves.axhline(best, color="k", linestyle=":", linewidth=1.2, label=f"optimum {best:g}")
        curves.set_ylim(bottom=max(curves.get_ylim()[0], -1.1))
        curves.set(title=f"mean and range of {len(values)} seeds", xlabel="updates", ylabel="return")
        curves.legend(fontsize=8, loc="best")


def draw_grid(path: Path, game: PolynomialGame, results: Results, basin: dict) -> None:
    """The starts of the grid, coloured by the optimum they end at; a cross if they end elsewhere."""
    methods = (TRUE_GRADIENT, *STATIC_METHODS, *CODA_METHODS)
    peaks, _ = optima(game)
    with panels(path, 2, 3, (11.0, 7.6)) as axes:
        for panel, method in zip(axes.ravel(), methods, strict=True):
            draw_surface(panel, game)
            starts = results.grid[method].theta[:, :, 0].reshape(-1, 2)
            for number in range(-1, len(peaks)):
                colour = "k" if number < 0 else f"C{(3, 0, 2, 1)[number % 4]}"
                marker = "x" if number < 0 else "o"
                panel.scatter(*starts[basin[method].ravel() == number].T, s=22, color=colour, marker=marker, zorder=3)
            panel.set(title=LABELS[method])
        axes[0, 0].set(title="basins of true gradient ascent")


def draw_gradients(path: Path, alignment: dict) -> None:
    """Cosine and relative size of each CODA mini-batch's gradient to the true one, against the true one's norm."""
    with panels(path, 1, 2, (10.0, 3.8)) as axes:
        for method in CODA_METHODS:
            norm, cosine, size = (alignment[method][name].ravel() for name in ("norm", "cosine", "size"))
            seen = norm > 1e-3
            for panel, values in zip(axes[0], (cosine, size), strict=True):
                panel.scatter(norm[seen], values[seen], s=4, color=COLOURS[method], alpha=0.5, label=LABELS[method])
        for panel, title in zip(axes[0], ("cosine to the true gradient", "norm over the true norm"), strict=True):
            panel.axvline(0.1, color="k", linestyle=":", linewidth=1)
            panel.set(title=f"synthetic mini-batch: {title}", xlabel="norm of the true gradient", xscale="log")
            panel.legend(fontsize=8, loc="lower right")
        axes[0, 1].set(ylim=(0, 3))


def draw_routes(path: Path, game: PolynomialGame, dataset: DatasetConfig, guidance: float, results: Results) -> None:
    """Eq. 15 by quadrature, and the samples of both routes, at three policies along CODA's path."""
    edges = np.linspace(-1.0, 1.0, CELLS + 1)
    with panels(path, 3, 3, (10.0, 10.2)) as axes:
        for row, (policy, panel_row) in enumerate(zip(results.policies, axes, strict=False)):
            masses = tilted_masses(dataset, edges, policy, guidance)
            panel_row[0].pcolormesh(edges, edges, masses.T, cmap="viridis", vmin=0.0, rasterized=True)
            panel_row[0].set(title=f"Eq. 15, std 1, $\\lambda$ = {guidance:g}")
            for panel, method in zip(panel_row[1:], CODA_METHODS, strict=True):
                draw_surface(panel, game)
                samples = results.samples[method][0, row]
                panel.scatter(*samples.T, s=8, color=COLOURS[method], alpha=0.6, linewidths=0, clip_on=False, zorder=7)
                panel.set(title=f"{LABELS[method]}\nspread {_spread(samples):.3f}")
            for panel in panel_row:
                colour = "white" if panel is panel_row[0] else "k"
                panel.plot(*policy, marker="+", markersize=12, color=colour, clip_on=False, zorder=6)
                frame_square(panel)


def _spread(samples: Float[np.ndarray, "N 2"]) -> float:
    return float(np.sqrt(samples.var(axis=0).mean()))
