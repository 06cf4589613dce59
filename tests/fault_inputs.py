"""Audits of faulty inputs: flags out of range, vaults with wrong contents, and sweeps with damaged files."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import yaml

from coda_jax.data.conventions import read_in_convention, recognise
from coda_jax.data.dataset import Episodes
from coda_jax.data.vault_files import open_vault
from experiments import sweep
from experiments.host.errors import one_line_errors
from experiments.pipeline.settings import ExperimentConfig
from tests.drift import FALLING_DRIFT, SPEC, falling_episodes
from tests.fault_world import ROOT, Figures, World, damages, flatten, is_refusal, numbers, outcome
from tests.out_of_range import leaves, outside
from tests.vaults import joint_experience, write_with_flashbax

NOISE_LEVELS = ("sigma-min 80", "sigma-min 79.99999999", "sigma-max 1e38", "rho 1e6")
"""Values in range that together give noise levels which do not decrease."""

EPISODES = falling_episodes("flffllffflfflflf")
"""Falls after some 14 steps, and time limits of 40."""


def audit_flags(world: World) -> Figures:
    """Gives every number of the main job's settings all generated values outside of its range."""
    numeric = list(leaves(ExperimentConfig))
    cases = [
        (f"--{'.'.join(path).replace('_', '-')}", [value, *rest])
        for path, hint, rest in numeric
        for value in outside(hint)
    ]
    cases += [(f"--diffusion.{setting.split()[0]}", setting.split()[1:]) for setting in NOISE_LEVELS]
    path, failures = world.folder / "refused", []
    for flag, values in cases:
        status, lines = world.here(path, flag, *values)
        if not (is_refusal(status, lines) and " must " in lines[0] and not path.exists()):
            failures.append(f"{flag} {values}: {status} {lines[-1:]}")
    return {
        "flags": len(numeric),
        "cases": len(cases),
        "refused in one line": len(cases) - len(failures),
        "failures": failures,
    }


def repairable() -> Iterator[tuple[str, Any, Episodes]]:
    """Recordings in OG-MARL's layout with faulty ends, and the episodes to read from each."""
    falls, limits = np.flatnonzero(EPISODES.terminal), np.flatnonzero(EPISODES.truncation)
    ends = np.sort(np.concatenate([falls, limits]))
    flags = {
        "right": (falls, limits),
        "none": ((), ()),
        "some": (falls[::3], limits[1::2]),
        "both at every end": (ends, ends),
        "swapped": (limits, falls),
        "all terminals": (ends, ()),
        "all truncations": ((), ends),
        "more than there are": (falls, np.union1d(limits, np.arange(5, ends[-1], 10))),
    }
    for shift in (-3, -2, -1, 1, 2):
        moved = [at + shift for at in (falls, limits)]
        flags[f"moved by {shift}"] = tuple(at[at <= ends[-1]] for at in moved)
    for name, (terminals, truncations) in flags.items():
        yield name, joint_experience(EPISODES, list(terminals), list(truncations)), EPISODES
    of_one_agent = joint_experience(EPISODES, falls, limits)
    of_one_agent["terminals"][..., 1] = of_one_agent["truncations"][..., 0] = False
    yield "of one agent", of_one_agent, EPISODES
    steps = np.arange(len(EPISODES.reward))
    for name, kept, cut in (
        ("4 steps lost", np.delete(steps, slice(20, 24)), 19),
        ("a step twice", np.insert(steps, 6, 5), 5),
    ):
        recorded = jax.tree.map(lambda leaf, kept=kept: leaf[kept], EPISODES)
        flagged = np.flatnonzero(recorded.terminal), np.flatnonzero(recorded.truncation)
        experience = joint_experience(recorded, *flagged)
        recorded.truncation[cut] = 1.0
        yield name, experience, recorded
    large = jax.tree.map(np.copy, EPISODES)
    large.reward[5] = 3e38  # finite, but not its square
    yield "right, with a reward of 3e38", joint_experience(large, falls, limits), large


def unusable() -> Iterator[tuple[str, Any]]:
    """Recordings in OG-MARL's layout that cannot be used: wrong values, sizes, and missing leaves."""

    def right() -> Any:
        return joint_experience(EPISODES, np.flatnonzero(EPISODES.terminal), np.flatnonzero(EPISODES.truncation))

    def with_value(leaf: str, step: int, value: float, kind: type = np.float32) -> Any:
        experience = jax.tree.map(lambda x: x.astype(kind) if x.dtype == np.float32 else x, right())
        folder, name = (experience["infos"], "state") if leaf == "infos.state" else (experience, leaf)
        folder[name] = folder[name].astype(kind)
        folder[name][0, step] = value
        return experience

    for leaf in ("observations", "actions", "rewards", "infos.state"):
        for step in (5, 70):  # the first is among those that tell the convention
            for value in (np.nan, np.inf, -np.inf):
                yield f"{leaf} {value} at {step}", with_value(leaf, step, value)
            yield f"{leaf} 1e300 at {step}", with_value(leaf, step, 1e300, np.float64)
    for leaf in ("terminals", "truncations"):
        yield f"{leaf} NaN", with_value(leaf, 5, np.nan)
    yield "actions 1.5", with_value("actions", 70, 1.5)
    unequal = right()
    unequal["rewards"][0, 70, 1] += 1.0
    yield "unequal rewards", unequal
    for leaf in right():
        yield f"no {leaf}", {name: value for name, value in right().items() if name != leaf}
    yield "one agent", {**right(), "actions": right()["actions"][:, :, :1]}
    yield "another state", {**right(), "infos": {"state": np.zeros((1, len(EPISODES.reward), 5), np.float32)}}
    yield "an end at every step", joint_experience(EPISODES, np.arange(len(EPISODES.reward)))
    yield "steps backwards", jax.tree.map(lambda leaf: leaf[:, ::-1], right())
    yield "one step", jax.tree.map(lambda leaf: leaf[:, :1], right())
    yield "no steps", jax.tree.map(lambda leaf: leaf[:, :0], right())


def audit_faulty_vaults(world: World) -> Figures:
    """Reads vaults with wrong contents in whole files: the ends are repaired, anything else is refused."""
    tried, repaired, refused, failures = 0, 0, 0, []

    def attempt(experience: Any) -> tuple[int | str, list[str], list[Episodes]]:
        path, read = world.folder / "faulty" / f"{tried}.vlt" / "one", []
        length = experience["actions" if "actions" in experience else "rewards"].shape[1]
        with jax.enable_x64(True):
            write_with_flashbax(path, experience, length)

        def command() -> None:
            opened = open_vault(path)
            read.append(read_in_convention(opened, recognise(opened, {SPEC.name: FALLING_DRIFT})))

        status, lines = outcome(one_line_errors()(command))
        return status, lines, read

    for name, experience, expected in repairable():
        status, lines, read = attempt(experience)
        tried += 1
        same = (status, lines) == (0, []) and dict(flatten(vars(read[0]))) == dict(flatten(vars(expected)))
        repaired += same
        failures += [] if same else [f"ends, {name}: {status} {lines[-1:]}"]
    for name, experience in unusable():
        status, lines, _ = attempt(experience)
        tried += 1
        refused += is_refusal(status, lines)
        failures += [] if is_refusal(status, lines) else [f"{name}: {status} {lines[-1:]}"]
    return {"cases": tried, "right episodes": repaired, "refused in one line": refused, "failures": failures}


def audit_sweep(world: World, flips: int = 20) -> Figures:
    """Damages the files of a sweep's run, finished and unfinished, and the sweep's settings, and repeats the sweep.

    Damaged settings may still be valid: they name other runs, in folders of their own.
    """
    file, output, whole = world.folder / "sweep.yaml", world.folder / "sweep", world.folder / "whole_sweep"
    settings = {flag.removeprefix("--"): value for flag, value in zip(world.flags[::2], world.flags[1::2], strict=True)}
    file.write_text(yaml.safe_dump({"output": str(output), "settings": settings, "groups": [{}]}))
    (run,) = sweep.read_sweep(file)
    tried, refused, same, failures = 0, 0, 0, []
    with drift_jobs():
        undamaged = [outcome(lambda: sweep.main([str(file)])) for _ in range(2)]
    failures += [] if undamaged == [(0, []), (0, [])] else [f"undamaged: {undamaged}"]
    shutil.copytree(run.path, whole)
    expected = numbers(whole)

    def repeat(name: str, damaged: bytes, finished: bool) -> tuple[int | str, list[str]]:
        shutil.rmtree(run.path)
        shutil.copytree(whole, run.path)
        if not finished:
            (run.path / "summary.json").unlink()
        (run.path / name).write_bytes(damaged)
        with drift_jobs():
            return outcome(lambda: sweep.main([str(file)]))

    for path in sorted(path for path in whole.glob("[!.]*") if path.is_file()):
        for kind, damaged in damages(path.read_bytes(), world.rng, 1):
            status, lines = repeat(path.name, damaged, finished=True)
            tried += 1
            refused += is_refusal(status, lines)
            failures += [] if is_refusal(status, lines) else [f"finished, {path.name}, {kind}: {status} {lines}"]
    last = max((whole / "checkpoints" / "train" / "steps").iterdir(), key=lambda step: int(step.name))
    largest = max((path for path in last.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    for name in ("metrics.csv", "config.yaml", str(largest.relative_to(whole))):
        kind, damaged = world.rng.choice(list(damages((whole / name).read_bytes(), world.rng, 1)))
        status, lines = repeat(name, damaged, finished=False)
        tried += 1
        last_words = run.path.with_name(f"{run.name}.log").read_text().splitlines()[-1]
        if (status, lines) == (0, []) and numbers(run.path) == expected:
            same += 1
        elif status == 1 and len(lines) == 1 and last_words.startswith("error: "):
            refused += 1
        else:
            failures.append(f"unfinished, {name}, {kind}: {status} {lines} {last_words}")
    valid = 0
    for kind, damaged in damages(file.read_bytes(), world.rng, flips):
        file.write_bytes(damaged)
        status, lines = outcome(lambda: sweep.main([str(file), "--list"]))
        tried += 1
        valid += (status, lines) == (0, [])
        refused += is_refusal(status, lines)
        failures += [] if status == 0 or is_refusal(status, lines) else [f"settings, {kind}: {status} {lines}"]
    return {
        "cases": tried,
        "refused in one line": refused,
        "same numbers": same,
        "valid settings of other runs": valid,
        "failures": failures,
    }


@contextlib.contextmanager
def drift_jobs() -> Iterator[None]:
    """Sweeps run the main job in the environment without physics."""
    before = sweep.JOB, os.environ.get("PYTHONPATH", "")
    sweep.JOB = (sys.executable, str(ROOT / "tests" / "experiments" / "drift_job.py"))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    try:
        yield
    finally:
        sweep.JOB, os.environ["PYTHONPATH"] = before
