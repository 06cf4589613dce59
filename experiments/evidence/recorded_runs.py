"""Recorded runs: reading them, and grouping those of one method.

A *condition* is all settings but the seeds. Runs of one condition are one cell of a table, their seeds together.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.evidence.naming import METHODS, setting_name, value_name
from experiments.host.cache import flat, key_of, plain
from experiments.host.errors import UserError
from experiments.host.records import parse_file, parse_mapping
from experiments.host.run_folder import Metrics, verify_run
from experiments.host.yaml_files import parse_yaml
from experiments.pipeline.learners import DEFAULT_ALGORITHM, is_of_algorithm
from experiments.pipeline.settings import OF_GUIDED_TRAJECTORIES, OF_OLDER_RUNS, PRESETS, uses
from experiments.pipeline.summary import SUMMARY

PROVENANCE = {"device": str, "backend": str, "visible_cores": int, "platform": str}
"""What is read of a provenance."""

SCALES: dict[str, str] = {"tuned": "laptop", "plus": "laptop"}
"""Presets with the sizes of another, and that other."""

ADVICE = "restore the run from a copy, or remove it"
"""What to do about a damaged run."""

SYNTHETIC = {"unconditional": "unguided", "model": "by the model", "simulated": "simulated", "coda": "guided"}
"""The name of each augmentation's synthetic trajectories in `sample_quality`."""

DEPARTURES = {
    name: getattr(OF_OLDER_RUNS, name)
    for name in ("guidance_target", "guidance_start", *OF_GUIDED_TRAJECTORIES, "rollout_noise", "rollout_segments")
}
"""Settings of an augmentation that is not the paper's, with their usual values; labels name the others."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run, as read from its folder."""

    path: Path
    label: str
    """Name of its method in tables and pictures."""
    summary: Mapping[str, Any]
    metrics: Mapping[str, np.ndarray]
    config: Mapping[str, Any]
    provenance: Mapping[str, Any] | None
    """The machine it ran on; None if that was not recorded."""


class Draw(NamedTuple):
    """A realisation of a dataset, identified by the mean and best return of its episodes.

    Different CPU or GPU types round differently, so the same behaviour teams give different episodes on them.
    """

    mean: float
    best: float


@dataclasses.dataclass(frozen=True)
class Cell:
    """All seeds of one condition."""

    benchmark: tuple[str, str, str]
    """Preset, task and dataset."""
    method: str
    """Augmentation, and the guidance scale of CODA."""
    setup: Mapping[str, Any]
    """All other settings that the method uses, by dotted name."""
    runs: tuple[Run, ...]

    @property
    def returns(self) -> dict[int, float]:
        """The return of each seed's final policy, a mean over evaluation episodes."""
        pairs = [zip(run.summary["seeds"], run.summary["returns_per_seed"], strict=True) for run in self.runs]
        return dict(sorted(pair for of_run in pairs for pair in of_run))

    @property
    def untrained(self) -> dict[int, float]:
        """The return of each seed's policy before training."""
        found = {}
        for run in self.runs:
            first = run.metrics["round"] == 0
            found |= dict(zip(run.metrics["seed"][first].tolist(), run.metrics["return"][first].tolist(), strict=True))
        return dict(sorted(found.items()))

    @property
    def draws(self) -> dict[int, Draw]:
        """The realisation of the dataset that each seed was trained on."""
        return {seed: draw_of(run) for run in self.runs for seed in run.summary["seeds"]}

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """The rows of all runs, in the columns that all runs have."""
        shared = [name for name in self.runs[0].metrics if all(name in run.metrics for run in self.runs)]
        return {name: np.concatenate([run.metrics[name] for run in self.runs]) for name in shared}

    @property
    def summary(self) -> Mapping[str, Any]:
        """The summary of the first run, for fields that are equal in all runs."""
        return self.runs[0].summary

    def quality(self, kind: str, name: str) -> float | None:
        """An error of one kind of trajectories: the mean over runs, weighted by their numbers of seeds.

        None if no run has it; older runs that lack it are left out.
        """
        known = [
            (error, len(run.summary["seeds"]))
            for run in self.runs
            if (error := run.summary["sample_quality"].get(kind, {}).get(name)) is not None
        ]
        if not known:
            return None
        errors, weights = zip(*known, strict=True)
        return float(np.average(errors, weights=weights))


def draw_of(run: Run) -> Draw:
    """The realisation of the dataset that a run was trained on."""
    return Draw(run.summary["dataset_mean_return"], run.summary["dataset_best_return"])


def read_run(path: Path) -> Run:
    """Reads a run.

    Raises:
        UserError: the run is missing, unfinished, or not from `experiments.mamujoco`.
    """
    summary, config = read_summary(path, SUMMARY), read_settings(path)
    if not isinstance(config.get("training"), dict):
        raise UserError(f"{path / 'config.yaml'} is no configuration of the main job")
    with _must_exist(path / "metrics.csv"):
        metrics = parse_file(path / "metrics.csv", lambda _: Metrics(path / "metrics.csv").read(), ADVICE)
    if summary["augmentation"] not in METHODS:
        raise UserError(f"{path / 'summary.json'} has an unknown augmentation, {summary['augmentation']}")
    if not {"round", "seed", "return"} <= set(metrics) or set(metrics["seed"]) != set(summary["seeds"]):
        raise UserError(f"{path / 'metrics.csv'} is not that of its summary: it needs rounds and returns of its seeds")
    if not np.isfinite(metrics["return"]).all():
        raise UserError(f"{path / 'metrics.csv'} is damaged: a return is not finite; {ADVICE}")
    returns = summary["returns_per_seed"]
    if len(returns) != len(summary["seeds"]) or not np.isfinite(returns).all():
        raise UserError(f"{path / 'summary.json'} needs a finite return for each of its seeds")
    if summary["augmentation"] in ("model", "simulated"):
        metrics.pop("unguided_log_likelihood", None)  # measured on the first policy's roll-outs, which are not samples
    provenance = read_provenance(path)
    label = METHODS[summary["augmentation"]]
    if summary["augmentation"] != "none":
        label += f", mix {config['training']['mix_ratio']:g}"
    if summary["augmentation"] == "coda":
        label += f", guidance {value_name(summary['guidance'])}"
    for name, usual in DEPARTURES.items():
        if config.get(name, usual) != usual:
            label += f", {setting_name(name)} {value_name(config[name])}"
    return Run(path, label, summary, metrics, config, provenance)


def read_summary(path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the summary of a run, all of whose files are verified; copies may lack artefacts, paths and figures.

    Raises:
        UserError: the run is unfinished, one of its files is damaged, or the summary lacks a field.
    """
    verify_run(path, ADVICE, may_lack=lambda name: "/" in name or Path(name).suffix in (".npz", ".gz"))
    return read_json(path / "summary.json", fields)


def read_json(file: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a JSON file of a run folder that holds a mapping with certain fields, each of its type.

    Raises:
        UserError: the file is missing, is no such mapping, or lacks a key.
    """
    with _must_exist(file):
        return parse_mapping(file, json.loads, fields, ADVICE)


def read_settings(path: Path) -> dict[str, Any]:
    """Reads the settings of a run.

    Raises:
        UserError: the file is missing or is no mapping.
    """
    with _must_exist(path / "config.yaml"):
        return parse_mapping(path / "config.yaml", parse_yaml, {}, ADVICE)


@contextlib.contextmanager
def _must_exist(file: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{file.parent} is no finished run: it has no {file.name}") from None


def is_smoke(path: Path) -> bool:
    """Whether a run has the `smoke` preset, which is too small to be evidence."""
    return read_settings(path).get("preset") == "smoke"


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Reads the machine of a run; None if it was not recorded.

    Raises:
        UserError: the file lacks a field.
    """
    file = path / "provenance.json"
    return read_json(file, PROVENANCE) if file.exists() else None


def find_runs(results: Path) -> list[Run]:
    """All finished runs of the main job below a folder, by path.

    Runs of the `smoke` preset are left out, and so are the training runs inside steering runs.
    """
    found = []
    for file in sorted(results.rglob("summary.json")):
        if (file.parent.parent / "steering.csv").exists():
            continue
        if "augmentation" in read_json(file, {}) and not is_smoke(file.parent):
            found.append(read_run(file.parent))
    return found


def cells_of(runs: Iterable[Run]) -> list[Cell]:
    """Groups runs by condition.

    Raises:
        UserError: two runs of one condition share a seed.
    """
    conditions: dict[str, list[Run]] = {}
    described: dict[str, tuple[tuple[str, str, str], str, dict[str, Any]]] = {}
    for run in runs:
        benchmark, method, setup = condition(run)
        key = key_of([benchmark, method, setup])
        described[key] = benchmark, method, setup
        conditions.setdefault(key, []).append(run)
    for members in conditions.values():
        owner: dict[int, Path] = {}
        for run in members:
            for seed in run.summary["seeds"]:
                if seed in owner:
                    raise UserError(f"seed {seed} of the same run is in {owner[seed]} and in {run.path}; remove one")
                owner[seed] = run.path
    return [Cell(*described[key], tuple(members)) for key, members in conditions.items()]


def condition(run: Run) -> tuple[tuple[str, str, str], str, dict[str, Any]]:
    """Benchmark, method and setup of a run. Settings newer than the run are as in `OF_OLDER_RUNS`.

    A benchmark is named by the preset of its scale: runs of `tuned` and `plus` stand beside those of `laptop`, of the
    same sizes.
    """
    preset: str = run.config.get("preset", "laptop")
    setup = {**flat(plain(OF_OLDER_RUNS)), **flat(run.config)}
    augmentation = run.summary["augmentation"]
    method = augmentation if augmentation != "coda" else f"coda {value_name(run.summary['guidance'])}"
    benchmark = (SCALES.get(preset, preset), run.summary["task"], dataset_name(run.summary))
    left_out = {"preset", "task", "dataset", "vault", "augmentation", "guidance", "seed", "num_seeds", "run_dir"}
    left_out.add("allow_other_devices")
    algorithm = setup.get("algorithm", DEFAULT_ALGORITHM)
    names = (name for name in sorted(setup) if name not in left_out and uses(augmentation, name))
    return benchmark, method, {name: setup[name] for name in names if is_of_algorithm(algorithm, name)}


def dataset_name(summary: Mapping[str, Any]) -> str:
    """A dataset's name; for a vault the last two parts of its path, without characters that break tables or files."""
    vault = summary.get("vault")
    return summary["dataset"] if vault is None else re.sub(r"[^\w.+-]", "_", "_".join(Path(vault).parts[-2:]))


def agree(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two setups have equal values for all settings that both have."""
    return all(a[name] == b[name] for name in set(a) & set(b))


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The names of the settings in which two setups differ."""
    return sorted(name for name in set(a) & set(b) if a[name] != b[name])


def main_setup(cells: Sequence[Cell]) -> Mapping[str, Any]:
    """The setup of a table: the one with most methods, then most benchmarks, then fewest changes to its preset.

    Augmentations have settings of their own: CODA's are chosen first, then the remaining ones of the others.
    """
    found: dict[str, Any] = {}
    preset = cells[0].benchmark[0]
    default = flat(plain(PRESETS[preset])) if preset in PRESETS else {}

    def weight(setup: Mapping[str, Any]) -> tuple[int, int, int, int, str]:
        members = [cell for cell in cells if agree(cell.setup, {**found, **setup})]
        methods = {(cell.benchmark, cell.method) for cell in members}
        seeds = sum(len(cell.returns) for cell in members)
        return (
            len(methods),
            len({cell.benchmark for cell in members}),
            -len(difference(setup, default)),
            seeds,
            key_of(setup),
        )

    for augmentation in reversed(METHODS):
        setups = [cell.setup for cell in cells if cell.summary["augmentation"] == augmentation]
        found |= max((setup for setup in setups if agree(setup, found)), key=weight, default={})
    return found
