"""The recorded runs below `results/`, sorted: the runs of Table 1, ablations, other fits, steering, and the games."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.evidence.naming import guidance_name
from experiments.evidence.recorded_runs import (
    Cell,
    Draw,
    Run,
    agree,
    cells_of,
    difference,
    draw_of,
    find_runs,
    is_smoke,
    main_setup,
    read_json,
    read_provenance,
    read_run,
    read_settings,
    read_summary,
)
from experiments.guidance.curves import Curve, Points, curve, has_measure, read_points
from experiments.host.cache import key_of
from experiments.host.errors import UserError
from experiments.pipeline.settings import uses

Benchmark = tuple[str, str, str]
"""Preset, task and dataset."""

PRESET_ORDER = ("paper", "laptop")
"""The largest scale first; a claim is judged at the first with the necessary runs."""

CODA = "coda 0.6"
"""CODA at the lambda of the paper's figures, which the verdicts use."""

COLUMNS = ("none", "unconditional", CODA, "coda 1", "simulated")
"""The methods of Table 1: the paper's, with its two lambdas, and the oracle. Other lambdas are ablations."""

STEERING = {
    **{"task": str, "dataset": str, "vault": str | None, "preset": str, "fit_seed": int},
    **{"highest_log_likelihood": float, "real": dict[str, dict[str, float]], "wall_seconds": dict[str, float]},
}
"""What is read of a summary of `experiments.steering`."""

SELECTION = {"selection": dict[str, dict[str, dict[str, list[float]]]]}
"""What is read besides where the starts were measured."""

GAME = {
    **{"game": str, "dataset": str, "returns_per_seed": dict[str, list[float]]},
    **{"optimum": float, "wall_seconds": float},
}
"""What is read of a summary of a polynomial game."""

DATASET_ORDER = ("replay", "good", "medium", "poor")


@dataclasses.dataclass(frozen=True)
class Steering:
    """A run of `experiments.steering`."""

    path: Path
    name: str
    """Its path below the folder of results, in one word; prefix of its figures' names."""
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    points: Points
    provenance: Mapping[str, Any] | None
    training: Run | None
    """The run that trained its policies, if recorded."""

    @property
    def through_denoiser(self) -> bool:
        """Whether its guidance passed through the denoiser; older runs lack the setting, which means no."""
        return self.config.get("steered", {}).get("diffusion", {}).get("through_denoiser", False)

    @property
    def recorded_steps(self) -> int:
        """How many tokens were held to recorded ones; older runs lack the setting, which means none."""
        return self.config.get("steered", {}).get("recorded_steps", 0)

    @property
    def guidance(self) -> str:
        """The reach of its guidance, in words."""
        return guidance_name(self.through_denoiser, self.recorded_steps)

    @property
    def figures(self) -> tuple[str, ...]:
        """The kinds of its figures; older runs lack the measures of the last."""
        return ("likelihood", "quality") + ("selection",) * has_measure(self.points, "start_shift")

    def curve(self, policy: str, measure: str) -> Curve | None:
        """A curve under the annealed schedule at the largest number of steps."""
        most = max(part.num_steps for part in self.points)
        return curve(self.points, policy, "annealed", most, measure)


@dataclasses.dataclass(frozen=True)
class Game:
    """A run on a polynomial game."""

    path: Path
    folder: str
    """Its path below the folder of results."""
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Evidence:
    """All recorded runs, sorted."""

    table: tuple[Cell, ...]
    """Table 1: for each preset and task, the cells of its main setup."""
    variants: tuple[tuple[Cell, tuple[str, ...]], ...]
    """All other cells, with the names of their changed settings; no names if only lambda differs."""
    steering: tuple[Steering, ...]
    games: tuple[Game, ...]

    def cell(self, benchmark: Benchmark, method: str) -> Cell | None:
        """A cell of Table 1."""
        return next((cell for cell in self.table if (cell.benchmark, cell.method) == (benchmark, method)), None)

    def alike(self, cell: Cell, method: str) -> Cell | None:
        """The cell of a method at the same benchmark with equal values of all settings that both use.

        If several match, because of settings that only this method uses: the one with the fewest changes to Table 1.
        """
        cells = [(other, ()) for other in self.table] + list(self.variants)
        found = [
            (len(names), other)
            for other, names in cells
            if (other.benchmark, other.method) == (cell.benchmark, method) and agree(other.setup, cell.setup)
        ]
        return min(found, key=lambda pair: pair[0], default=(0, None))[1]

    def reference(self, cell: Cell) -> Cell | None:
        """The base of a variant: its method in Table 1; for other lambdas, CODA at the paper's with equal settings."""
        return self.cell(cell.benchmark, cell.method) if cell.method in COLUMNS else self.alike(cell, CODA)

    def benchmarks(self) -> list[Benchmark]:
        """The rows of Table 1."""
        return sorted({cell.benchmark for cell in self.table}, key=_benchmark_order)

    def draws(self, benchmark: Benchmark) -> dict[Draw, list[int]]:
        """The realisations of a benchmark's dataset in Table 1, each with its seeds."""
        draw_of_seed: dict[int, Draw] = {}
        for cell in self.table:
            if cell.benchmark == benchmark:
                draw_of_seed |= cell.draws
        found: dict[Draw, list[int]] = {}
        for seed, draw in sorted(draw_of_seed.items()):
            found.setdefault(draw, []).append(seed)
        return found

    def complete(self, preset: str) -> tuple[list[Benchmark], list[str]]:
        """Normalisable benchmarks of a preset with the paper's three methods, and the methods run on all of them."""
        ours = [
            benchmark for benchmark in self.benchmarks() if benchmark[0] == preset and self.is_normalisable(benchmark)
        ]
        benchmarks = [benchmark for benchmark in ours if self.comparable(benchmark, ("none", "unconditional", CODA))]
        methods = [
            method for method in COLUMNS if benchmarks and all(self.cell(benchmark, method) for benchmark in benchmarks)
        ]
        return benchmarks, methods

    def shared(self, benchmark: Benchmark, methods: Sequence[str]) -> list[int]:
        """The seeds that all these methods have at a benchmark."""
        cells = [self.cell(benchmark, method) for method in methods]
        return sorted(set.intersection(*(set(cell.returns) if cell else set() for cell in cells)))

    def comparable(self, benchmark: Benchmark, methods: Sequence[str]) -> bool:
        """Whether all these methods have at least two seeds in common at a benchmark."""
        return len(self.shared(benchmark, methods)) > 1

    def judged_at(self, task: str, dataset: str, methods: Sequence[str]) -> Benchmark | None:
        """The benchmark of the largest scale at which these methods are comparable."""
        found = (benchmark for benchmark in self.benchmarks() if benchmark[1:] == (task, dataset))
        return next((benchmark for benchmark in found if self.comparable(benchmark, methods)), None)

    def normalised(self, cell: Cell) -> dict[int, float]:
        """Each seed's return, scaled so that 0 is the mean untrained policy and 1 the best episode of its dataset.

        The mean episode is no usable scale: on Poor it returns hardly more than untrained policies.
        """
        zero = float(np.mean(self._untrained(cell.benchmark)))
        return {seed: (value - zero) / (cell.draws[seed].best - zero) for seed, value in cell.returns.items()}

    def is_normalisable(self, benchmark: Benchmark) -> bool:
        """Whether the best episode exceeds the mean untrained policy by more than the latter's standard deviation."""
        untrained = self._untrained(benchmark)
        best = min(draw.best for draw in self.draws(benchmark))
        return best - untrained.mean() > (untrained.std(ddof=1) if len(untrained) > 1 else 0.0)

    def _untrained(self, benchmark: Benchmark) -> np.ndarray:
        """The return of each seed's policy before training, which is the same for all methods."""
        found: dict[int, float] = {}
        for cell in self.table:
            if cell.benchmark == benchmark:
                found = {**cell.untrained, **found}
        return np.array([found[seed] for seed in sorted(found)])


def gather(results: Path) -> Evidence:
    """Reads all recorded runs below a folder.

    Raises:
        UserError: the folder is missing, a run cannot be read, or runs contradict each other.
    """
    if not results.is_dir():
        raise UserError(f"--results {results} is no folder; name the one that holds the run folders")
    cells = sorted(cells_of(find_runs(results)), key=cell_order)
    _check_datasets(cells)
    table: list[Cell] = []
    variants: list[tuple[Cell, tuple[str, ...]]] = []
    for scope in dict.fromkeys(cell.benchmark[:2] for cell in cells):
        members = [cell for cell in cells if cell.benchmark[:2] == scope]
        setup = main_setup([cell for cell in members if cell.method in COLUMNS] or members)
        for cell in members:
            if agree(cell.setup, setup) and cell.method in COLUMNS:
                table.append(cell)
            else:
                variants.append((cell, tuple(difference(cell.setup, setup))))
    variants.sort(
        key=lambda variant: (cell_order(variant[0]), *((n, in_order(variant[0].setup[n])) for n in variant[1]))
    )
    return Evidence(tuple(table), tuple(variants), _steering(results), _games(results))


def _check_datasets(cells: Sequence[Cell]) -> None:
    """Refuses runs of one benchmark with equal seed and data settings, but other episodes."""
    first: dict[str, Run] = {}
    for cell in cells:
        data = {name: value for name, value in cell.setup.items() if name.startswith("data.") and uses("none", name)}
        for run in cell.runs:
            for seed in run.summary["seeds"]:
                known = first.setdefault(key_of([cell.benchmark, seed, data]), run)
                ours, theirs = draw_of(run), draw_of(known)
                if ours != theirs:
                    raise UserError(
                        f"{run.path} learnt from episodes of mean return {ours.mean} and best {ours.best}, "
                        f"{known.path} from others, of {theirs.mean} and {theirs.best}: seed {seed} cannot be "
                        "compared; remove one. Machines of different types roll out different episodes: use other "
                        "seeds on each"
                    )


def _steering(results: Path) -> tuple[Steering, ...]:
    found: dict[tuple[Any, ...], Steering] = {}
    for file in sorted(results.rglob("steering.csv")):
        path = file.parent
        if not (path / "summary.json").exists() or is_smoke(path):
            continue
        points = read_points(file)
        newer = SELECTION if has_measure(points, "start_shift") else {}
        summary = read_summary(path, {**STEERING, **newer})
        training = path / "training"
        run = Steering(
            path,
            "_".join(path.relative_to(results).parts),
            summary,
            config=read_settings(path),
            points=points,
            provenance=read_provenance(path),
            training=read_run(training) if (training / "summary.json").exists() else None,
        )
        names = ("preset", "task", "dataset", "vault", "fit_seed")
        condition = (*(summary[name] for name in names), run.guidance)
        other = found.setdefault(condition, run)
        if other is not run:
            raise UserError(f"{path} and {other.path} are of the same preset, data, fit and guidance; remove one")
    return tuple(sorted(found.values(), key=lambda run: _preset_order(run.summary["preset"])))


def _games(results: Path) -> tuple[Game, ...]:
    found: dict[tuple[str, str], Game] = {}
    for file in sorted(results.rglob("summary.json")):
        if "game" in read_json(file, {}):
            summary = read_summary(file.parent, GAME)
            game = Game(file.parent, file.parent.relative_to(results).as_posix(), summary, read_provenance(file.parent))
            other = found.setdefault((summary["game"], summary["dataset"]), game)
            if other is not game:
                raise UserError(f"{game.path} and {other.path} are of the same game and dataset; remove one")
    return tuple(found.values())


def method_order(method: str) -> tuple[int, float]:
    """Baselines first, then CODA by its guidance scale, the adapted one last, then the oracle."""
    name, _, guidance = method.partition(" ")
    scale = math.inf if guidance == "auto" else float(guidance or 0)
    return ("none", "unconditional", "coda", "model", "simulated").index(name), scale


def cell_order(cell: Cell) -> tuple[Any, ...]:
    """The order of a table's cells: the largest scale first, then task, dataset and method."""
    return _benchmark_order(cell.benchmark), method_order(cell.method)


def in_order(value: Any) -> tuple[float, str]:
    """Sort key for the values of a setting: numbers first, by size, then all others, alphabetically."""
    return (math.inf, str(value)) if isinstance(value, bool) or not isinstance(value, int | float) else (value, "")


def _preset_order(preset: str) -> int:
    return PRESET_ORDER.index(preset) if preset in PRESET_ORDER else len(PRESET_ORDER)


def _benchmark_order(benchmark: Benchmark) -> tuple[int, str, int, str]:
    preset, task, dataset = benchmark
    order = DATASET_ORDER.index(dataset) if dataset in DATASET_ORDER else len(DATASET_ORDER)
    return _preset_order(preset), task, order, dataset
