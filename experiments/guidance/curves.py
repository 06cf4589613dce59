"""The curves of `experiments.steering`: their file, and the figures drawn from it."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from experiments.host.errors import UserError
from experiments.host.files import write_atomically
from experiments.host.plots import panels
from experiments.host.records import parse_file

COLUMNS = (
    "policy",
    "schedule",
    "num_steps",
    "lambda",
    "seed",
    "log_likelihood",
    "dynamics_error",
    "feature_distance",
    "action_response",
    "start_shift",
    "start_log_likelihood",
)
OLDER_COLUMNS = (COLUMNS[:-2], COLUMNS[:-3])
"""Those of older files, which lack the last measures."""
POLICIES = {"initial": "policy at initialisation", "trained": "policy trained on the data"}
"""Labels of the policies that trajectories are steered toward."""


class Part(NamedTuple):
    """One point of a curve, with one row per seed."""

    policy: str
    schedule: str
    num_steps: int
    guidance: float


class Errors(NamedTuple):
    """The measures of a seed's trajectories at a point; see `SampleQuality` for the second and third.

    action_response:      see `evaluation.action_response`; NaN at lambda 0 and in older files.
    start_shift:          how far guidance moves the mean first state, see `selection.start_shift`; NaN in older files.
    start_log_likelihood: of the recorded windows nearest to the starts, see `selection`; NaN in older files.
    """

    log_likelihood: float
    dynamics_error: float
    feature_distance: float
    action_response: float = math.nan
    start_shift: float = math.nan
    start_log_likelihood: float = math.nan


STYLES = (":", "--")
"""Line styles of constant levels, in their order."""

References = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""Measures by policy, set of starts, and seed."""

Points = dict[Part, dict[int, Errors]]
"""The measures of each seed, by point."""


class Curve(NamedTuple):
    """One policy's curve. guidance: `[L]`, rising; values: `[L, S]` by seed."""

    guidance: np.ndarray
    seeds: tuple[int, ...]
    values: np.ndarray

    def at(self, guidance: float) -> np.ndarray:
        """The values `[S]` at a guidance scale of the grid."""
        return self.values[int(np.flatnonzero(self.guidance == guidance)[0])]


def write_points(path: Path, points: Points) -> None:
    """Writes the long form, one row per point and seed, atomically."""
    write_atomically(path, text_of(points))


def text_of(points: Points) -> str:
    """What `write_points` writes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for part, by_seed in points.items():
        for seed, errors in by_seed.items():
            labels = (part.policy, part.schedule, part.num_steps, f"{part.guidance:g}", seed)
            writer.writerow([*labels, *(f"{value:.6g}" for value in errors)])
    return text.getvalue()


def read_points(path: Path) -> Points:
    """Reads the file of `write_points`; empty if there is none yet.

    Raises:
        UserError: the file has another format.
    """
    points: Points = {}
    if not path.exists():
        return points
    header, *rows = parse_file(path, lambda text: list(csv.reader(text.splitlines())), "delete it") or [[]]
    if tuple(header) not in (COLUMNS, *OLDER_COLUMNS):
        raise UserError(f"{path} has the columns {', '.join(header)}; expected {', '.join(COLUMNS)}")
    for number, row in enumerate(rows):
        try:
            policy, schedule, num_steps, guidance, seed, *values = row
            part = Part(policy, schedule, int(num_steps), float(guidance))
            points.setdefault(part, {})[int(seed)] = Errors(*map(float, values))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} cannot be read: row {number + 1} is {','.join(row)}") from error
    return points


def curve(points: Points, policy: str, schedule: str, num_steps: int, measure: str) -> Curve | None:
    """The curve of one measure (a field of `Errors`); None if there are no such points."""
    of = sorted(part for part in points if part[:3] == (policy, schedule, num_steps))
    if not of:
        return None
    seeds = tuple(sorted(points[of[0]]))
    values = [[getattr(points[part][seed], measure) for seed in seeds] for part in of]
    return Curve(np.array([part.guidance for part in of]), seeds, np.array(values))


def sampled(points: Points) -> tuple[list[int], list[str]]:
    """The numbers of diffusion steps and the schedules of the points."""
    return sorted({part.num_steps for part in points}), sorted({part.schedule for part in points})


def has_measure(points: Points, measure: str) -> bool:
    """Whether any point has a finite value of the measure; older files lack some."""
    return any(np.isfinite(getattr(errors, measure)) for by_seed in points.values() for errors in by_seed.values())


def draw_likelihood(path: Path, title: str, points: Points, highest: float) -> None:
    """Draws Figure 3: mean action log-likelihood against lambda; a panel for each schedule and number of steps.

    Args:
        path: the PNG to write.
        title: task, dataset and reach of the guidance.
        points: all points.
        highest: the log-likelihood of the policy's own actions.
    """
    measures = {"log_likelihood": "log-likelihood of the actions"}
    _draw(path, title, points, measures, {"log_likelihood": {"the policy's own": highest}})


def draw_quality(path: Path, title: str, points: Points, real: Mapping[str, float]) -> None:
    """Draws the cost of steering against lambda: dynamics error, distance to the data, and the response to actions.

    Args:
        path: the PNG to write.
        title: task, dataset and reach of the guidance.
        points: all points.
        real: dynamics error of shuffled data, by name.
    """
    measures = {"dynamics_error": "dynamics error", "feature_distance": "distance to the data"}
    levels = {"dynamics_error": dict(real)}
    if has_measure(points, "action_response"):
        measures["action_response"] = "response to actions"
        levels["action_response"] = {"as the simulator's": 1.0}
    _draw(path, title, points, measures, levels)


def draw_selection(path: Path, title: str, points: Points, references: References) -> None:
    """Draws which starts guided samples prefer, against lambda: their shift, and the likelihood of the data near them.

    Args:
        path: the PNG to write.
        title: task, dataset and reach of the guidance.
        points: all points; those without the measures leave a gap.
        references: both measures of the data's own starts and of the policies' roll-outs, as `selection.levels` gives.
    """
    measures = {
        "start_shift": "shift of the starts\n(standard deviations)",
        "start_log_likelihood": "log-likelihood of the data's\nactions near the starts",
    }
    _draw(path, title, points, measures, {}, references)


def _draw(
    path: Path,
    title: str,
    points: Points,
    measures: Mapping[str, str],
    levels: Mapping[str, Mapping[str, float]],
    references: References | None = None,
) -> None:
    numbers, schedules = sampled(points)
    columns = [(schedule, num_steps) for schedule in schedules for num_steps in numbers]
    scales = sorted({part.guidance for part in points if part.guidance > 0})
    with panels(path, len(measures), len(columns), (max(4.8, 3.2 * len(columns)), 3.0 * len(measures))) as grid:
        for row, (measure, label) in enumerate(measures.items()):
            for axes, (schedule, num_steps) in zip(grid[row], columns, strict=True):
                if axes is not grid[row, 0]:
                    axes.sharey(grid[row, 0])
                for number, policy in enumerate(POLICIES):
                    line = curve(points, policy, schedule, num_steps, measure)
                    if line is not None:
                        _draw_curve(axes, line, POLICIES[policy], f"C{number}")
                    for (name, means), style in zip((references or {}).get(policy, {}).items(), STYLES, strict=False):
                        level, words = float(np.mean(means[measure])), f"{name}, {policy} policy"
                        axes.axhline(level, color=f"C{number}", linestyle=style, linewidth=1.0, label=words)
                for (name, level), style in zip(levels.get(measure, {}).items(), STYLES, strict=False):
                    axes.axhline(level, color="0.4", linestyle=style, linewidth=1.0, label=name)
                axes.set_xscale("symlog", linthresh=scales[0], linscale=0.5)
                axes.set_xlim(-scales[0] / 4, 1.6 * scales[-1])
                axes.set(xlabel="guidance scale λ (left: 0)", ylabel=label)
                axes.set_title(f"{title}\n{schedule}, N = {num_steps}", fontsize=9)
            if measure in levels or (references and row == 0):
                grid[row, -1].legend(loc="best", fontsize=7)


def _draw_curve(axes: Axes, line: Curve, label: str, colour: str) -> None:
    """Mean and standard error over seeds; non-finite values leave a gap."""
    values = np.where(np.isfinite(line.values), line.values, np.nan)
    mean = values.mean(axis=1)
    axes.plot(line.guidance, mean, color=colour, marker="o", markersize=2.5, linewidth=1.5, label=label)
    if len(line.seeds) > 1:
        error = values.std(axis=1, ddof=1) / math.sqrt(len(line.seeds))
        axes.fill_between(line.guidance, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)


def missing(parts: Iterable[Part], points: Points, seeds: Sequence[int]) -> list[Part]:
    """The points that lack a seed."""
    return [part for part in parts if not set(seeds) <= set(points.get(part, {}))]
