"""Figures of a coordination run: learning curves, and the final conventions of the seeds."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float

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


def draw_conventions(path: Path, ends: Mapping[str, Float[np.ndarray, "S E A"]]) -> None:
    """The last positions of the first two agents in evaluation episodes, one colour per seed."""
    columns = 4
    num_rows = -(-len(ends) // columns)
    with panels(path, num_rows, columns, (3.0 * columns, 3.0 * num_rows)) as axes:
        for axis in np.ravel(axes)[len(ends) :]:
            axis.set_axis_off()
        for axis, (method, positions) in zip(np.ravel(axes), ends.items(), strict=False):
            for seed, end in enumerate(positions):
                axis.scatter(end[:, 0], end[:, 1], s=4, color=plt.get_cmap("tab20")(seed % 20))
            axis.axhline(0.0, color="0.7", linewidth=0.5)
            axis.axvline(0.0, color="0.7", linewidth=0.5)
            axis.set(title=method, xlabel="$x_1$", ylabel="$x_2$", xlim=(-4, 4), ylim=(-4, 4))
            axis.title.set_fontsize(8)
