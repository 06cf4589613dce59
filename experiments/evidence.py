"""What lies below `results/`, sorted: the runs of Table 1, ablations, other fits, steering, and the games."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import UserError
from experiments.kept_runs import (
    Cell,
    Run,
    agree,
    cells_of,
    difference,
    find_runs,
    is_smoke,
    main_setup,
    read_json,
    read_provenance,
    read_run,
    read_settings,
)
from experiments.steering_curves import Curve, Points, curve, read_points

Place = tuple[str, str, str]
"""Preset, task and dataset."""

PRESET_ORDER = ("paper", "laptop")
"""The largest scale first: claims are judged at the first that has the runs."""

CODA = "coda 0.6"
"""CODA at the lambda of the paper's figures, by which it is judged."""

COLUMNS = ("none", "unconditional", CODA, "coda 1", "simulated")
"""The methods of Table 1: the paper's, with its two lambdas, and the oracle. Other lambdas are ablations."""

DATASET_ORDER = ("replay", "good", "medium", "poor")


@dataclasses.dataclass(frozen=True)
class Steering:
    """A run of `experiments.steering`."""

    path: Path
    name: str
    """Its place below the folder of results, in one word; its pictures are called by it."""
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    points: Points
    provenance: Mapping[str, Any] | None
    training: Run | None
    """The run that trained its policies, where it is kept too."""

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
    """All that is kept."""

    table: tuple[Cell, ...]
    """Table 1: for each preset and task, the cells of its main setup."""
    variants: tuple[tuple[Cell, tuple[str, ...]], ...]
    """All others, with the names of the settings that differ from the main setup's; none for another lambda."""
    steering: tuple[Steering, ...]
    games: tuple[Game, ...]

    def cell(self, place: Place, method: str) -> Cell | None:
        """A cell of Table 1."""
        return next((cell for cell in self.table if (cell.place, cell.method) == (place, method)), None)

    def alike(self, cell: Cell, method: str) -> Cell | None:
        """The cell of another method at the same place, with the same values of all settings that both use."""
        cells = (*self.table, *(other for other, _ in self.variants))
        found = (other for other in cells if (other.place, other.method) == (cell.place, method))
        return next((other for other in found if agree(other.setup, cell.setup)), None)

    def reference(self, cell: Cell) -> Cell | None:
        """What a variant is a variant of: its method in Table 1, and CODA at the paper's lambda for other lambdas."""
        return self.cell(cell.place, cell.method if cell.method in COLUMNS else CODA)

    def places(self) -> list[Place]:
        """The rows of Table 1."""
        return sorted({cell.place for cell in self.table}, key=_place_order)

    def draws(self, place: Place) -> list[tuple[float, float]]:
        """The mean and best return of the dataset, for each draw of its episodes that seeds there learnt from."""
        found: dict[int, tuple[float, float]] = {}
        for cell in self.table:
            if cell.place == place:
                found |= cell.episodes
        return list(dict.fromkeys(found[seed] for seed in sorted(found)))

    def complete(self, preset: str) -> tuple[list[Place], list[str]]:
        """The places of a preset that have the paper's three methods, and the methods that all of these places have."""

        def has(place: Place, methods: Sequence[str]) -> bool:
            return all(self.cell(place, method) for method in methods)

        places = [p for p in self.places() if p[0] == preset and has(p, ("none", "unconditional", CODA))]
        methods = sorted({cell.method for cell in self.table if cell.place in places}, key=method_order)
        return places, [method for method in methods if all(has(place, (method,)) for place in places)]

    def comparable(self, place: Place, methods: Sequence[str]) -> bool:
        """Whether all these methods have run there, two seeds or more the same."""
        cells = [self.cell(place, method) for method in methods]
        return len(set.intersection(*(set(cell.returns) if cell else set() for cell in cells))) > 1

    def judged_at(self, task: str, dataset: str, methods: Sequence[str]) -> Place | None:
        """The place of the largest scale at which these methods can be compared."""
        found = (place for place in self.places() if place[1:] == (task, dataset))
        return next((place for place in found if self.comparable(place, methods)), None)

    def normalised(self, cell: Cell) -> dict[int, float]:
        """Each seed's return, so that 0 is the mean untrained policy at this place and 1 the dataset's best episode.

        Not its mean episode, because those of Poor return hardly more than untrained policies.
        """
        untrained: dict[int, float] = {}
        for other in self.table:
            if other.place == cell.place:
                untrained = {**other.untrained, **untrained}
        zero = float(np.mean([untrained[seed] for seed in sorted(untrained)]))
        return {seed: (value - zero) / (cell.episodes[seed][1] - zero) for seed, value in cell.returns.items()}


def gather(results: Path) -> Evidence:
    """Reads everything below a folder.

    Raises:
        UserError: a folder that is not there, a run that cannot be read, or runs that contradict one another.
    """
    if not results.is_dir():
        raise UserError(f"--results {results} is no folder; name the one that holds the run folders")
    cells = sorted(cells_of(find_runs(results)), key=cell_order)
    _check_datasets(cells)
    table: list[Cell] = []
    variants: list[tuple[Cell, tuple[str, ...]]] = []
    for scope in dict.fromkeys(cell.place[:2] for cell in cells):
        members = [cell for cell in cells if cell.place[:2] == scope]
        setup = main_setup(members)
        for cell in members:
            if agree(cell.setup, setup) and cell.method in COLUMNS:
                table.append(cell)
            else:
                variants.append((cell, tuple(difference(cell.setup, setup))))
    variants.sort(key=lambda variant: (cell_order(variant[0]), *((n, variant[0].setup[n]) for n in variant[1])))
    return Evidence(tuple(table), tuple(variants), _steering(results), _games(results))


def _check_datasets(cells: Sequence[Cell]) -> None:
    """Runs of one place that share a seed must have had the same episodes: their mean and best returns tell.

    Machines of different kinds differ in last bits, and so in the episodes that they roll out from the same teams.
    """
    first: dict[tuple[Place, int], Run] = {}
    for cell in cells:
        for run in cell.runs:
            for seed in run.summary["seeds"]:
                known = first.setdefault((cell.place, seed), run)
                for name in ("dataset_mean_return", "dataset_best_return"):
                    if run.summary[name] != known.summary[name]:
                        raise UserError(
                            f"{run.path} has {name} {run.summary[name]}, {known.path} has {known.summary[name]}: they "
                            f"are of different episodes, and seed {seed} cannot be compared; remove one, or run other "
                            "seeds on the other machine"
                        )


def _steering(results: Path) -> tuple[Steering, ...]:
    found: dict[tuple[Any, ...], Steering] = {}
    for file in sorted(results.rglob("steering.csv")):
        path = file.parent
        if not (path / "summary.json").exists() or is_smoke(path):
            continue
        summary = read_json(path / "summary.json", ("task", "dataset", "vault", "preset", "fit_seed", "wall_seconds"))
        training = path / "training"
        run = Steering(
            path,
            "_".join(path.relative_to(results).parts),
            summary,
            config=read_settings(path),
            points=read_points(file),
            provenance=read_provenance(path),
            training=read_run(training) if (training / "summary.json").exists() else None,
        )
        condition = tuple(summary[name] for name in ("preset", "task", "dataset", "vault", "fit_seed"))
        other = found.setdefault(condition, run)
        if other is not run:
            raise UserError(f"{path} and {other.path} are of the same preset, data and fit; remove one")
    return tuple(sorted(found.values(), key=lambda run: _preset_order(run.summary["preset"])))


def _games(results: Path) -> tuple[Game, ...]:
    found: dict[tuple[str, str], Game] = {}
    for file in sorted(results.rglob("summary.json")):
        if "game" in read_json(file, ()):
            summary = read_json(file, ("game", "dataset", "returns_per_seed", "optimum", "wall_seconds"))
            game = Game(file.parent, file.parent.relative_to(results).as_posix(), summary, read_provenance(file.parent))
            other = found.setdefault((summary["game"], summary["dataset"]), game)
            if other is not game:
                raise UserError(f"{game.path} and {other.path} are of the same game and dataset; remove one")
    return tuple(found.values())


def method_order(method: str) -> tuple[int, float]:
    """Baselines first, then CODA by its guidance scale, then what no method can have."""
    name, _, guidance = method.partition(" ")
    return ("none", "unconditional", "coda", "simulated").index(name), float(guidance or 0)


def cell_order(cell: Cell) -> tuple[Any, ...]:
    """The order of a table's cells: the largest scale first, then task, dataset and method."""
    return _place_order(cell.place), method_order(cell.method)


def _preset_order(preset: str) -> int:
    return PRESET_ORDER.index(preset) if preset in PRESET_ORDER else len(PRESET_ORDER)


def _place_order(place: Place) -> tuple[int, str, int, str]:
    preset, task, dataset = place
    order = DATASET_ORDER.index(dataset) if dataset in DATASET_ORDER else len(DATASET_ORDER)
    return _preset_order(preset), task, order, dataset
