"""Figures of a coordination run: learning curves, and the final conventions of the seeds."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from experiments.host.plots import panels


def draw_curves(path: Path, title: str, returns: Mapping[str, Float[np.ndarray, "R S"]], updates: np.ndarray) -> None:
    """Mean return against updates, with a band of one standard error over seeds."""
    with panels(path, 1, 1, (8.0, 5.0)) as axes:
        (axis,) = np.ravel(axes)
        for number, (method, values) in enumerate(returns.items()):
            mean = values.mean(axis=1)
            colour = plt.get_cmap("tab20")(number)
            axis.plot(updates, mean, color=colour, label=method)
            if values.shape[1] > 1:
                error = values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
                axis.fill_between(updates, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
        axis.set(title=title, xlabel="updates", ylabel="return")
        axis.legend(fontsize=6)


def draw_sides(path: Path, ends: Mapping[str, Float[np.ndarray, "S E A"]]) -> None:
    """Same side: the last positions of the first two agents in evaluation episodes, one colour per seed."""
    with one_panel_each(path, list(ends)) as axes:
        for axis, positions in zip(axes, ends.values(), strict=True):
            for seed, end in enumerate(positions):
                axis.scatter(end[:, 0], end[:, 1], s=4, color=plt.get_cmap("tab20")(seed % 20))
            axis.axhline(0.0, color="0.7", linewidth=0.5)
            axis.axvline(0.0, color="0.7", linewidth=0.5)
            axis.set(xlabel="$x_1$", ylabel="$x_2$", xlim=(-4, 4), ylim=(-4, 4))


def draw_assignments(path: Path, ends: Mapping[str, Float[np.ndarray, "S E A"]]) -> None:
    """Spread: for each seed the share of evaluation episodes that end in each convention, or in none."""
    num_agents = next(iter(ends.values())).shape[-1]
    labels = [*(f"convention {k}" for k in range(num_agents)), "another assignment", "a landmark without agent"]
    colours = [*(f"C{k}" for k in range(num_agents)), "0.75", "0.2"]
    with one_panel_each(path, list(ends)) as axes:
        for axis, landmark in zip(axes, ends.values(), strict=True):
            shares = assignment_shares(landmark)
            bottom = np.zeros(len(shares))
            for share, label, colour in zip(shares.T, labels, colours, strict=True):
                axis.bar(np.arange(len(shares)), share, bottom=bottom, color=colour, label=label, width=0.9)
                bottom += share
            axis.set(xlabel="seed", ylabel="share of episodes", ylim=(0, 1))
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles, _ = axes[0].get_legend_handles_labels()
        plt.gcf().legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)


def draw_elbows(path: Path, ends: Mapping[str, Float[np.ndarray, "S E 2"]]) -> None:
    """Reacher: the final angle of the elbow and distance from the target, one colour per seed."""
    with one_panel_each(path, list(ends)) as axes:
        for axis, values in zip(axes, ends.values(), strict=True):
            for seed, end in enumerate(values):
                axis.scatter(end[:, 0], end[:, 1], s=4, color=plt.get_cmap("tab20")(seed % 20))
            axis.axvline(0.0, color="0.7", linewidth=0.5)
            axis.set(xlabel="elbow, rad", ylabel="distance from the target", xlim=(-np.pi, np.pi), ylim=(-0.01, 0.4))


def assignment_shares(landmark: Float[np.ndarray, "S E A"]) -> Float[np.ndarray, "S K"]:
    """Shares of a seed's episodes: in convention 0 to A - 1, in another complete assignment, in an incomplete one.

    Args:
        landmark: the landmark nearest to each agent; by convention k, agent i has landmark (i + k) mod A.
    """
    num_agents = landmark.shape[-1]
    shift = (landmark - np.arange(num_agents)) % num_agents
    is_complete = (np.sort(landmark, axis=-1) == np.arange(num_agents)).all(axis=-1)
    of_convention = [(shift == k).all(axis=-1) for k in range(num_agents)]
    other = is_complete & ~np.any(of_convention, axis=0)
    return np.stack([*of_convention, other, ~is_complete], axis=-1).mean(axis=1)


@contextlib.contextmanager
def one_panel_each(path: Path, titles: Sequence[str], columns: int = 4) -> Iterator[list[Axes]]:
    """Axes with these titles, in rows of `columns`."""
    num_rows = -(-len(titles) // columns)
    with panels(path, num_rows, columns, (3.0 * columns, 3.0 * num_rows)) as grid:
        axes = list(np.ravel(grid))
        for axis in axes[len(titles) :]:
            axis.set_axis_off()
        for axis, title in zip(axes, titles, strict=False):
            axis.set_title(title, fontsize=8)
        yield axes[: len(titles)]
