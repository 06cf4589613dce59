"""Coordination over time, a comparison of all methods: `python -m experiments.coordination --task same-side`.

The other tasks are `spread`, `2reacher-notip` and `2reacher-first`.

Seeds of every method learn from the same recorded episodes with the same fitted prior. The run folder holds
`returns.csv`, `guidance.csv` (lambda and spread of guided methods), `summary.json` and `figures/`; on a finished one
the command prints the table again. An interrupted run continues with the first method that it has not finished.
"""

import functools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from experiments.host.cache import enable_compilation_cache, flat, key_of, plain
from experiments.host.console import phase, print_config, print_table, say
from experiments.host.devices import set_up_devices
from experiments.host.errors import FROM_UNFINISHED, one_line_errors, parse_command
from experiments.host.files import write_atomically
from experiments.host.plots import guidance_paths
from experiments.host.records import parse_mapping, write_record
from experiments.host.run_folder import RunFolder, open_run_folder
from experiments.pipeline.estimate import show_estimate
from experiments.tasks.estimate import phases_of
from experiments.tasks.figures import draw_assignments, draw_curves, draw_elbows, draw_sides
from experiments.tasks.settings import DEFAULTS, CoordinationConfig, Method, check, methods_of, title_of
from experiments.tasks.training import Trained, World, make_world, train


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors(FROM_UNFINISHED):
        config = parse_command(CoordinationConfig, args, DEFAULTS, "--task")
        check(config)
        if config.estimate is None:
            run(config)
        else:
            show_estimate(config.estimate, config.num_seeds, "default", functools.partial(phases_of, config))


def identity_of(config: CoordinationConfig) -> dict[str, Any]:
    """All settings that determine a run's numbers."""
    return {name: value for name, value in plain(config).items() if name not in ("run_dir", "estimate")}


def run(config: CoordinationConfig) -> None:
    """Trains every method, and leaves a finished run folder.

    Raises:
        UserError: a run folder of other settings, or NaNs in the training.
    """
    identity, usual = identity_of(config), identity_of(DEFAULTS[config.task])
    different = {name: value for name, value in flat(identity).items() if value != flat(usual)[name]}
    path = config.run_dir or Path("runs", f"coordination-{config.task}-{key_of(different)}")
    mesh = set_up_devices(config.num_seeds)
    enable_compilation_cache()
    with open_run_folder(path, identity, num_devices=mesh.size, defaults=usual) as folder:
        say(f"run folder: {path}")
        if not folder.finished:
            print_config(identity)
            with phase("rolling out the episodes and fitting the models"):
                world = make_world(config)
            trained: dict[str, Trained] = {}
            methods = methods_of(config)
            with phase("training", total=len(methods)) as progress:
                for number, (name, method) in enumerate(methods.items()):
                    trained[name] = finished_or_trained(config, method, world, mesh, path / f"methods/{number}.json")
                    progress.advance(note=f"{name}: {trained[name].returns[-1].mean():.2f}")
            write(config, world, trained, folder)
        show(folder.read_summary())


def finished_or_trained(config: CoordinationConfig, method: Method, world: World, mesh: Mesh, file: Path) -> Trained:
    """A method's training, read from its file if it finished before an interruption."""
    if file.exists():
        fields = {"returns": list, "ends": list, "seconds": float}
        stored = parse_mapping(file, json.loads, fields, "delete it to train the method again")
        of_guided = {name: stored.get(name) for name in ("response", "scale", "spread")}
        arrays = {name: None if values is None else np.array(values) for name, values in of_guided.items()}
        return Trained(np.array(stored["returns"]), np.array(stored["ends"]), stored["seconds"], **arrays)
    start = time.monotonic()
    trained = train(config, method, world, mesh)._replace(seconds=time.monotonic() - start)
    file.parent.mkdir(exist_ok=True)
    values = {name: None if value is None else np.asarray(value).tolist() for name, value in trained._asdict().items()}
    write_record(file, values)
    return trained


def write(config: CoordinationConfig, world: World, trained: dict[str, Trained], folder: RunFolder) -> None:
    """Writes the raw returns, the pictures and the summary."""
    updates = np.arange(config.training.num_rounds + 1) * config.training.updates_per_round
    rows = [
        f"{name},{config.seed + seed},{number},{value}"
        for name, each in trained.items()
        for seed, curve in enumerate(each.returns.T)
        for number, value in zip(updates, curve, strict=True)
    ]
    write_atomically(folder.path / "returns.csv", "\n".join(["method,seed,updates,return", *rows]) + "\n")
    draw_curves(folder.figures / "returns.png", title_of(config), {n: t.returns for n, t in trained.items()}, updates)
    draw_conventions = {"same-side": draw_sides, "spread": draw_assignments}.get(config.task, draw_elbows)
    draw_conventions(folder.figures / "conventions.png", {n: t.ends for n, t in trained.items()})
    paths = {n: (t.scale, t.spread) for n, t in trained.items() if t.scale is not None and t.spread is not None}
    if paths:
        write_guidance(config, paths, folder)
    folder.write_summary(
        {
            "task": config.task,
            "algorithm": config.algorithm,
            "num_seeds": config.num_seeds,
            "updates": int(updates[-1]),
            "dataset_mean_return": world.dataset_return,
            "convention_return": world.task.convention_return(),
            "published_returns": world.task.published,
            "returns_per_seed": {name: each.returns[-1].tolist() for name, each in trained.items()},
            "response_per_seed": {n: t.response.tolist() for n, t in trained.items() if t.response is not None},
            "wall_seconds": sum(each.seconds for each in trained.values()),
        }
    )


def write_guidance(
    config: CoordinationConfig, paths: Mapping[str, tuple[np.ndarray, np.ndarray]], folder: RunFolder
) -> None:
    """Writes lambda and the spread of the synthetic actions `[rounds, seeds]` of each guided method, and draws them."""
    rows = [
        f"{name},{config.seed + seed},{number + 1},{scale[number, seed]},{spread[number, seed]}"
        for name, (scale, spread) in paths.items()
        for number, seed in np.ndindex(scale.shape)
    ]
    write_atomically(
        folder.path / "guidance.csv", "\n".join(["method,seed,round,guidance,action_spread", *rows]) + "\n"
    )
    target = config.guidance_target if config.guidance == "auto" else None
    starts = np.arange(config.training.num_rounds) * config.training.updates_per_round
    guidance_paths(folder.figures / "guidance.png", title_of(config), starts, paths, target)


def show(summary: dict[str, Any]) -> None:
    """Prints the final returns of each method, with scores where the literature has a scale."""
    published = summary.get("published_returns")  # none in older summaries

    def score(value: float) -> dict[str, str]:
        """A column of the table: the return as a share of the way from random to expert play."""
        if published is None:
            return {}
        random, expert = published
        return {"score": f"{(value - random) / (expert - random):.2f}"}

    responses = summary.get("response_per_seed", {})  # none in older summaries
    rows = []
    for name, values in summary["returns_per_seed"].items():
        returns = np.array(values)
        error = f" +- {returns.std(ddof=1) / np.sqrt(len(returns)):.2f}" if len(returns) > 1 else ""
        response = f"{np.mean(responses[name]):.2f}" if name in responses else ""
        cells = {"return": f"{returns.mean():.2f}{error}", "worst": f"{returns.min():.2f}", "response": response}
        rows.append({"method": name} | cells | score(returns.mean()))
    for name, value in (
        ("recorded episodes", summary["dataset_mean_return"]),
        ("one convention", summary["convention_return"]),
    ):
        rows.append({"method": name, "return": f"{value:.2f}", "worst": "", "response": ""} | score(value))
    print_table(f"{summary['task']}: return after {summary['updates']} updates, {summary['num_seeds']} seeds", rows)
    say(f"{summary['wall_seconds']:.0f} s")


if __name__ == "__main__":
    main()
