"""What lies below `results/`, sorted: the runs of Table 1, ablations, other fits, steering, and the games."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import UserError
from experiments.kept_runs import Cell, agree, cells_of, difference, find_runs, main_setup
from experiments.steering_curves import Curve, Points, curve, read_points

Place = tuple[str, str, str]
"""Preset, task and dataset."""

PRESET_ORDER = ("paper", "laptop")
"""The largest scale first: claims are judged at the first that has the runs."""

CODA = "coda 0.6"
"""CODA at the lambda of the paper's figures, by which it is judged."""

DATASET_ORDER = ("replay", "good", "medium", "poor")


@dataclasses.dataclass(frozen=True)
class Steering:
    """A run of `experiments.steering`."""

    path: Path
    summary: Mapping[str, Any]
    points: Points
    provenance: Mapping[str, Any] | None

    def curve(self, policy: str, measure: str) -> Curve | None:
        """A curve under the annealed schedule at the largest number of steps."""
        most = max(part.num_steps for part in self.points)
        return curve(self.points, policy, "annealed", most, measure)


@dataclasses.dataclass(frozen=True)
class Game:
    """A run on a polynomial game."""

    path: Path
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Evidence:
    """All that is kept."""

    table: tuple[Cell, ...]
    """Table 1: for each preset and task, the cells of its main setup."""
    variants: tuple[tuple[Cell, tuple[str, ...]], ...]
    """Cells of other settings, with the names of those that differ from the main setup's."""
    steering: tuple[Steering, ...]
    games: tuple[Game, ...]

    def cell(self, place: Place, method: str) -> Cell | None:
        """A cell of Table 1."""
        return next((cell for cell in self.table if (cell.place, cell.method) == (place, method)), None)

    def places(self) -> list[Place]:
        """The rows of Table 1."""
        return sorted({cell.place for cell in self.table}, key=_place_order)

    def complete(self, preset: str) -> tuple[list[Place], list[str]]:
        """The places of a preset that have the paper's three methods, and the methods that all of these places have."""

        def has(place: Place, methods: Sequence[str]) -> bool:
            return all(self.cell(place, method) for method in methods)

        places = [p for p in self.places() if p[0] == preset and has(p, ("none", "unconditional", CODA))]
        methods = sorted({cell.method for cell in self.table if cell.place in places}, key=method_order)
        return places, [method for method in methods if all(has(place, (method,)) for place in places)]

    def judged_at(self, task: str, dataset: str, methods: Sequence[str]) -> Place | None:
        """The place of the largest scale at which all these methods have run."""
        found = (
            place
            for place in self.places()
            if place[1:] == (task, dataset) and all(self.cell(place, method) for method in methods)
        )
        return next(found, None)


def gather(results: Path) -> Evidence:
    """Reads everything below a folder.

    Raises:
        UserError: a folder that is not there, a run that cannot be read, or a seed that is there twice.
    """
    if not results.is_dir():
        raise UserError(f"--results {results} is no folder; name the one that holds the run folders")
    cells = sorted(cells_of(find_runs(results)), key=lambda cell: (_place_order(cell.place), method_order(cell.method)))
    table: list[Cell] = []
    variants: list[tuple[Cell, tuple[str, ...]]] = []
    for scope in dict.fromkeys(cell.place[:2] for cell in cells):
        members = [cell for cell in cells if cell.place[:2] == scope]
        setup = main_setup(members)
        for cell in members:
            if setup is not None and agree(cell.setup, setup):
                table.append(cell)
            else:
                variants.append((cell, tuple(difference(cell.setup, setup or {}))))
    steering = [
        Steering(file.parent, _json(file.parent / "summary.json"), read_points(file), _provenance(file.parent))
        for file in sorted(results.rglob("steering.csv"))
        if (file.parent / "summary.json").exists()
    ]
    games = [
        Game(file.parent, summary, _provenance(file.parent))
        for file in sorted(results.rglob("summary.json"))
        if "game" in (summary := _json(file))
    ]
    return Evidence(tuple(table), tuple(variants), tuple(steering), tuple(games))


def normalised(cell: Cell) -> dict[int, float]:
    """Each seed's return, so that 0 is the mean untrained policy of the dataset's runs and 1 its best episode.

    Not its mean episode, because those of Poor return hardly more than untrained policies.
    """
    zero = float(np.mean(list(cell.untrained.values())))
    unit = cell.summary["dataset_best_return"] - zero
    return {seed: (value - zero) / unit for seed, value in cell.returns.items()}


def method_order(method: str) -> tuple[int, float]:
    """Baselines first, then CODA by its guidance scale."""
    name, _, guidance = method.partition(" ")
    return ("none", "unconditional", "coda").index(name), float(guidance or 0)


def _place_order(place: Place) -> tuple[int, str, int, str]:
    preset, task, dataset = place
    presets, datasets = PRESET_ORDER, DATASET_ORDER
    return (
        presets.index(preset) if preset in presets else len(presets),
        task,
        datasets.index(dataset) if dataset in datasets else len(datasets),
        dataset,
    )


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _provenance(folder: Path) -> dict[str, Any] | None:
    file = folder / "provenance.json"
    return _json(file) if file.exists() else None
