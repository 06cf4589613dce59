"""Figures of runs."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from coda_jax.data.published import PublishedCard

STYLE: dict[Any, Any] = {
    "figure.figsize": (6.0, 4.0),
    "figure.dpi": 120,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "legend.frameon": False,
}


def learning_curve(
    path: Path, title: str, metrics: Mapping[str, np.ndarray], dataset_mean: float, dataset_best: float
) -> None:
    """Plots return against updates: a thin line per seed, their mean, and the dataset for reference.

    Args:
        path: the PNG to write.
        title: the run in words.
        metrics: columns `seed`, `updates` and `return` of a run's `metrics.csv`, one row a seed and evaluation.
        dataset_mean: mean return of the dataset's episodes.
        dataset_best: return of the dataset's best episode.
    """
    with picture(path) as axes:
        updates = np.unique(metrics["updates"])
        curves = [metrics["return"][metrics["seed"] == seed] for seed in np.unique(metrics["seed"])]
        for number, curve in enumerate(curves):
            axes.plot(updates, curve, color="C0", alpha=0.35, linewidth=0.8, label=None if number else "each seed")
        axes.plot(updates, np.mean(curves, axis=0), color="C0", linewidth=2.2, label=f"mean of {len(curves)} seeds")
        axes.axhline(dataset_mean, color="0.4", linestyle="--", linewidth=1.0, label="dataset, mean episode")
        axes.axhline(dataset_best, color="0.4", linestyle=":", linewidth=1.0, label="dataset, best episode")
        axes.set(title=title, xlabel="learner updates", ylabel="return of an episode")
        axes.legend(loc="best", fontsize=8)


def team_curves(path: Path, task: str, num_steps: np.ndarray, returns: np.ndarray) -> None:
    """Plots the return of the teams without noise, `[teams, snapshots]`, against environment steps `[snapshots]`."""
    with picture(path) as axes:
        for team, curve in enumerate(returns):
            axes.plot(num_steps / 1000, curve, marker="o", markersize=2.5, linewidth=1.2, label=f"team {team}")
        axes.set(title=f"Behaviour teams of {task}", xlabel="thousand environment steps", ylabel="return of an episode")
        axes.legend(loc="lower right", fontsize=8)


def returns_histogram(path: Path, title: str, returns: np.ndarray, published: PublishedCard | None) -> None:
    """Plots a histogram of episode returns, with the published mean, standard deviation and range."""
    with picture(path) as axes:
        axes.hist(returns, bins=40, color="C0", alpha=0.7)
        axes.axvline(returns.mean(), color="C0", linewidth=1.8, label=f"mean, {returns.mean():,.0f}")
        if published is not None:
            axes.axvline(published.mean, color="0.3", linestyle="--", label=f"published mean, {published.mean:,.0f}")
            low, high = published.mean - published.std, published.mean + published.std
            axes.axvspan(low, high, color="0.5", alpha=0.15, linewidth=0, label="published mean +- sd")
            for end in (published.min, published.max):
                axes.axvline(end, color="0.3", linestyle=":", linewidth=1.0)
        axes.set(title=title, xlabel="return of an episode", ylabel="episodes")
        axes.legend(loc="best", fontsize=8)


def comparison_curves(
    path: Path, title: str, runs: Sequence[tuple[str, Mapping[str, np.ndarray]]], dataset_means: Sequence[float]
) -> None:
    """Plots return against updates for several runs: the mean over seeds with a band of one standard error.

    Args:
        path: the PNG to write.
        title: the run in words.
        runs: label and metrics (see `learning_curve`) of each.
        dataset_means: mean return of the dataset's episodes, for each draw of them.
    """
    with picture(path) as axes:
        for label, metrics in runs:
            mean_curve(axes, label, metrics, "return")
        for number, mean in enumerate(dataset_means):
            label = None if number else "dataset, mean episode"
            axes.axhline(mean, color="0.4", linestyle="--", linewidth=1.0, label=label)
        axes.set(title=title, xlabel="learner updates", ylabel="return of an episode")
        axes.legend(loc="best", fontsize=8)


def likelihood_curves(path: Path, title: str, runs: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> None:
    """Plots the action log-likelihood of synthetic data under the policy that trains on it.

    Dashed lines: trajectories sampled without guidance, under the same policy. Arguments as in `comparison_curves`.
    """
    with picture(path) as axes:
        for number, (label, metrics) in enumerate(runs):
            # The likelihoods of a row are under the policy at the start of its round; zero without synthetic data.
            trained = {"updates": metrics["updates"][metrics["round"] < metrics["round"].max()]}
            trained["seed"] = metrics["seed"][metrics["round"] > 0]
            for name in {"synthetic_log_likelihood", "unguided_log_likelihood"} & set(metrics):
                trained[name] = np.where(metrics[name] == 0, np.nan, metrics[name])[metrics["round"] > 0]
            if not np.isnan(trained["synthetic_log_likelihood"]).all():
                mean_curve(axes, label, trained, "synthetic_log_likelihood", color=f"C{number}")
                if "unguided_log_likelihood" in trained:
                    mean_curve(axes, None, trained, "unguided_log_likelihood", color=f"C{number}", linestyle="--")
        axes.set(
            title=f"{title} (dashed: sampled without guidance)",
            xlabel="learner updates",
            ylabel="log-likelihood of the actions",
        )
        if axes.lines:
            axes.legend(loc="best", fontsize=8)


def guidance_paths(
    path: Path,
    title: str,
    updates: np.ndarray,
    methods: Mapping[str, tuple[np.ndarray, np.ndarray]],
    target: float | None,
) -> None:
    """Plots lambda and the spread of the synthetic actions against updates: a thin line per seed, and their mean.

    Args:
        path: the PNG to write.
        title: the run in words.
        updates: `[R]` updates before each round.
        methods: by label, lambda and spread `[R, seeds]` of each round; both are 0 without synthetic data.
        target: the spread that lambda is adapted to; None for a constant lambda.
    """
    with panels(path, 1, 2, (10.0, 4.0)) as grid:
        for axes, at, name in zip(grid[0], (0, 1), ("guidance scale lambda", "spread of the actions"), strict=True):
            for number, (label, both) in enumerate(methods.items()):
                is_used = both[1] > 0
                values = np.where(is_used, both[at], np.nan)
                axes.plot(updates, values, color=f"C{number}", alpha=0.35, linewidth=0.8)
                mean = np.where(is_used.all(axis=1), both[at].mean(axis=1), np.nan)
                axes.plot(updates, mean, color=f"C{number}", linewidth=2.0, label=label)
            axes.set(title=title if at == 0 else "", xlabel="learner updates", ylabel=name, ylim=(0.0, None))
        if target is not None:
            grid[0, 1].axhline(target, color="0.4", linestyle="--", linewidth=1.0, label="target")
        grid[0, 1].legend(loc="best", fontsize=8)


def mean_curve(axes: Axes, label: str | None, metrics: Mapping[str, np.ndarray], column: str, **style: Any) -> None:
    """Plots a column of `metrics.csv` against updates: the mean over seeds with a band of one standard error."""
    updates = np.unique(metrics["updates"])
    curves = np.stack([metrics[column][metrics["seed"] == seed] for seed in np.unique(metrics["seed"])])
    mean = curves.mean(axis=0)
    (line,) = axes.plot(updates, mean, linewidth=1.8, label=label, **style)
    if len(curves) > 1:
        error = curves.std(axis=0, ddof=1) / np.sqrt(len(curves))
        axes.fill_between(updates, mean - error, mean + error, color=line.get_color(), alpha=0.15, linewidth=0)


@contextlib.contextmanager
def picture(path: Path) -> Iterator[Axes]:
    """Axes in the style of the project, saved as a reproducible PNG at the end of the block."""
    with panels(path, 1, 1, STYLE["figure.figsize"]) as grid:
        yield grid[0, 0]


@contextlib.contextmanager
def panels(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[np.ndarray]:
    """Axes `[rows, columns]` in one figure of `size` inches; see `picture`."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        plt.rcParams.update(STYLE)
        figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        yield axes
        figure.savefig(path, metadata={"Software": None})  # pyright: ignore[reportArgumentType]
        plt.close(figure)
