"""How true the critics of finished runs are: `python -m experiments.values RUN [RUN ...] --output DIR`.

Each trained policy is played in the simulator from recorded states, its memory following the recorded steps before
them. The critics' values of its first actions are compared with the discounted returns that it then earns, and the
states that it visits with recorded ones. The folder holds `values.json` and a figure; finished runs are kept.
"""

import dataclasses
import itertools
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from annotated_types import MinLen
from jax.sharding import Mesh
from jaxtyping import Array, Float

from coda_jax.data.dataset import make_dataset, sample_windows, split_episodes
from coda_jax.evaluation import discounted_returns, nearest_distance, play_from, policy_returns
from coda_jax.marl.input_scale import raw_inputs
from coda_jax.marl.learner import LearnerState
from coda_jax.ranges import Count, NonNegativeCount, Ranged
from coda_jax.types import Trajectory
from experiments.consequences import RECORDED
from experiments.evidence.naming import setting_name, value_name
from experiments.evidence.recorded_runs import read_run
from experiments.guidance.subjects import recorded_states
from experiments.host.cache import enable_compilation_cache, key_of, plain
from experiments.host.console import phase, print_table, say
from experiments.host.devices import set_up_devices
from experiments.host.errors import UserError, one_line_errors, parse_command
from experiments.host.plots import panels
from experiments.host.provenance import provenance
from experiments.host.records import parse_mapping, write_record
from experiments.host.run_folder import RunFolder
from experiments.pipeline.learners import make_learner
from experiments.pipeline.recovery import trained_networks
from experiments.pipeline.run import compare_dataset, load_data
from experiments.pipeline.settings import OF_OLDER_RUNS, ROWS, ExperimentConfig, read_config

VISITED = 10
"""Of the steps of a play, every so many counts for the distance to the recorded states."""

BLOCK = 100
"""Steps over which the pace of a play is averaged."""

MEASURES = ("return", "value", "earned", "bias", "error", "correlation", "distance", "slowed", "episode")
"""What is measured of a seed: its return; the mean value and the mean discounted return that it stands for; their
difference, the root mean square difference, and their correlation, over the states; the median distance of visited
states to the nearest recorded one, in standard deviations of the data; the share of plays that have `slowed`; and the
return of an episode again, as a mean over more of them."""

OF_OLDER_RECORDS = {"num_episodes": 0}
"""The values of settings that older records do not name."""


@dataclasses.dataclass(frozen=True)
class ValuesConfig(Ranged):
    """Compares the values of trained critics with the returns that the policies earn in the simulator."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, MinLen(1)]
    """Finished run folders of the main job, with their checkpoints."""
    output: Path
    """Folder for `values.json` and `values.png`; the same command with more runs goes on there."""
    num_states: Count = 32
    """Recorded states to play from; the same for all runs of one dataset."""
    num_steps: Count = 500
    """Steps of a play. What comes after them is left out: of a constant reward, at discount 0.99, 0.7 %."""
    num_episodes: NonNegativeCount = 64
    """Whole episodes from the robot's rest, with the same starts for all runs, to know the return of a policy better
    than by the run's few; 0 for none."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        run(parse_command(ValuesConfig, args))


def run(config: ValuesConfig) -> None:
    """Measures the runs that the folder lacks, draws the figure, and prints the table.

    Raises:
        UserError: a run that is unfinished, of other data or without critics, two runs of one name, or a folder of
            other settings.
    """
    names = [path.name for path in config.runs]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two runs are named {repeated[0]}; give each once, or rename a folder")
    mesh = set_up_devices(1)
    labels = {path: label_of(path) for path in config.runs}
    config.output.mkdir(parents=True, exist_ok=True)
    file = config.output / "values.json"
    settings = {name: value for name, value in plain(config).items() if name not in ("runs", "output")}
    results: dict[str, Any] = {"settings": settings, "provenance": provenance(1), "runs": {}}
    if file.exists():
        results = parse_mapping(file, json.loads, {"settings": dict, "runs": dict}, "delete it to measure again")
        if key_of(OF_OLDER_RECORDS | results["settings"]) != key_of(settings):
            raise UserError(f"{file} is of other settings; choose another --output")
    todo = [path for path in config.runs if path.name not in results["runs"]]
    if todo:
        enable_compilation_cache()
        with phase("playing", total=len(todo)) as progress:
            for path in todo:
                results["runs"][path.name] = measure(path, labels[path], config, mesh)
                write_record(file, results)
                progress.advance(note=path.name)
    draw(config.output / "values.png", results["runs"])
    show(results["runs"])
    say(f"{file}")


def label_of(path: Path) -> str:
    """The run's method, and the rows that its losses see where these are not all rows."""
    found = read_run(path)
    chosen = {name: found.config["training"].get(name, "all") for name in ROWS}
    parts = [f"{setting_name(f'training.{name}')} {rows}" for name, rows in chosen.items() if rows != "all"]
    return ", ".join([found.label, *parts] if found.summary["augmentation"] != "none" else [found.label])


def measure(path: Path, label: str, config: ValuesConfig, mesh: Mesh) -> dict[str, Any]:
    """The measures of all seeds of a run."""
    settings = read_config(path / "config.yaml")
    compare_dataset(settings, RunFolder(path))
    env, episodes = load_data(settings, mesh)
    learner = make_learner(settings.algorithm, settings.learner, env.spec, raw_inputs(env.spec))
    value = learner.value
    if value is None:
        raise UserError(f"{path} has a learner without critics")
    states = trained_networks(path, learner, settings.num_seeds)
    dataset = make_dataset(split_episodes(episodes, settings.data.held_out_fraction)[0], settings.training.horizon)
    windows = sample_windows(dataset, jax.random.key(0), config.num_states, settings.training.horizon)
    recorded, state_std = recorded_states(dataset, RECORDED), jnp.std(dataset.steps.state, axis=0)

    @jax.jit
    def of_seed(state: LearnerState, windows: Trajectory) -> tuple[Array, Array, Array]:
        played = play_from(env, learner, state, windows, config.num_steps)
        values = value(state, played.state[:, 0], played.action[:, 0])
        earned = discounted_returns(played, settings.learner.discount)
        rest = [nearest_distance(played.state[:, ::VISITED], recorded, state_std), slowed(played.reward)]
        if config.num_episodes:
            rest.append(policy_returns(env, learner, state, jax.random.key(1), config.num_episodes).mean())
        return values, earned, jnp.stack(rest)

    summary = RunFolder(path).read_summary({"seeds": list[int], "returns_per_seed": list[float]})
    rows = []
    for index, score in enumerate(summary["returns_per_seed"]):
        state = jax.tree.map(lambda leaf, index=index: leaf[index], states)
        values, earned, rest = map(np.asarray, of_seed(state, windows))
        if not (np.isfinite(values).all() and np.isfinite(earned).all()):
            raise UserError(f"NaN in the plays of {path}, seed {summary['seeds'][index]}")
        rows.append([score, *compare(values, earned), *rest.tolist()])
    return {
        "label": label,
        "learner": learner_of(settings),
        "dataset": str(settings.vault or settings.dataset),
        "seeds": summary["seeds"],
        **{name: list(column) for name, column in zip(MEASURES, zip(*rows, strict=True), strict=False)},
    }


def learner_of(settings: ExperimentConfig) -> str:
    """The learner's settings that are not those of older runs; empty if there are none."""
    usual, chosen = vars(OF_OLDER_RUNS.learner), vars(settings.learner)
    changed = [name for name, value in chosen.items() if value != usual[name]]
    return ", ".join(f"{setting_name(f'learner.{name}')} {value_name(chosen[name])}" for name in changed)


def slowed(reward: Float[Array, "B T"]) -> Float[Array, ""]:
    """The share of plays whose last `BLOCK` steps earn less than half of their best, as after a fall."""
    num_blocks = max(1, reward.shape[1] // BLOCK)
    pace = reward[:, : num_blocks * BLOCK].reshape(reward.shape[0], num_blocks, -1).mean(axis=2)
    return jnp.mean(pace[:, -1] < 0.5 * pace.max(axis=1))


def compare(values: Float[np.ndarray, "B"], earned: Float[np.ndarray, "B"]) -> list[float]:
    """Mean value, mean return, their difference, the root mean square difference, and the correlation."""
    correlation = np.corrcoef(values, earned)[0, 1] if values.std() > 0 and earned.std() > 0 else 0.0
    error = np.sqrt(np.mean(np.square(values - earned)))
    return [float(x) for x in (values.mean(), earned.mean(), (values - earned).mean(), error, correlation)]


def draw(path: Path, runs: dict[str, Any]) -> None:
    """Draws bias and correlation of the values against the return, a panel a measure and a point a seed."""
    datasets = list(dict.fromkeys(run["dataset"] for run in runs.values()))
    labels = list(dict.fromkeys(_name(run) for run in runs.values()))
    shown = {"bias": "value less discounted return", "correlation": "correlation", "distance": "distance to the data"}
    with panels(path, len(datasets), len(shown), (11.0, 3.2 * len(datasets))) as grid:
        for row, dataset in zip(grid, datasets, strict=True):
            for axes, (measure, name) in zip(row, shown.items(), strict=True):
                for run in runs.values():
                    if run["dataset"] == dataset:
                        color, label = f"C{labels.index(_name(run))}", textwrap.fill(_name(run), 80)
                        axes.plot(run[measure], run["return"], "o", color=color, label=label, alpha=0.8)
                axes.set(title=dataset, xlabel=name, ylabel="return of an episode")
        handles, names = zip(*(axes.get_legend_handles_labels() for axes in grid[:, 0]), strict=True)
        by_label = dict(zip(itertools.chain(*names), itertools.chain(*handles), strict=True))
        grid[0, 0].figure.legend(by_label.values(), by_label.keys(), loc="outside upper center", fontsize=8, ncols=2)


def _name(run: dict[str, Any]) -> str:
    """A run's method and learner in the figure; older records lack the latter."""
    return f"{run['label']} ({run['learner']})" if run.get("learner") else run["label"]


def show(runs: dict[str, Any]) -> None:
    """Prints the means over seeds, and their standard errors."""

    def cell(numbers: Sequence[float]) -> str:
        spread = f" +- {np.std(numbers, ddof=1) / len(numbers) ** 0.5:.2g}" if len(numbers) > 1 else ""
        return f"{np.mean(numbers):,.{0 if abs(np.mean(numbers)) >= 10 else 2}f}{spread}"

    for name, run_ in runs.items():
        known = [measure for measure in MEASURES if measure in run_]  # older records lack the last ones
        rows = [{"measure": measure, "mean of seeds": cell(run_[measure])} for measure in known]
        print_table(f"{name}: {run_['dataset']}, {run_['label']}", rows)


if __name__ == "__main__":
    main()
