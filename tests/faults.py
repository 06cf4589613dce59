"""The fault audit, by `python -m tests.faults`: damage, faulty inputs, kills, rivals, full disks, and a soak; all tiny.

Every audit returns a row of figures. A *failure* is a traceback, more than one line, or a silent wrong number.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from coda_jax.artefact import ArtefactError, read_artefact
from coda_jax.data.vault import VaultError, read_vault
from experiments import mamujoco, report, sweep
from experiments.host.errors import one_line_errors
from experiments.host.files import read_stamped
from experiments.pipeline.recovery import policy_of_run, verify_artefact
from tests.drift import SPEC
from tests.fault_inputs import audit_faulty_vaults, audit_flags, audit_sweep
from tests.fault_world import Figures, World, damages, flatten, is_refusal, make_world, outcome, rounds_of, small_disk


def audit_finished(world: World, flips: int = 4) -> Figures:
    """Damages or removes every file of a finished run, repeats its command, and gives it to report, play and generate.

    The report reads copies, which may lack artefacts and figures. Without its summary, a run is unfinished.
    """
    path, tried, refused, failures = world.copy("finished"), 0, 0, []
    files = [file for folder in (path, path / "figures") for file in sorted(folder.glob("[!.]*")) if file.is_file()]
    commands: dict[str, Callable[[], Any]] = {
        "report": lambda: report.main([str(path), "--output", str(world.folder / "comparison")]),
        "play": one_line_errors()(lambda: policy_of_run(path)),
        "generate": one_line_errors()(lambda: verify_artefact(path / "prior.npz")),
    }
    for file in files:
        content = file.read_bytes()
        readers = ["report", *(["play"] if file.name == "policy.npz" else [])]
        readers += ["generate"] if file.name == "prior.npz" else []
        kinds: list[tuple[str, bytes | None]] = [*damages(content, world.rng, flips)]
        for kind, damaged in kinds if file.name == "summary.json" else [*kinds, ("missing", None)]:
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            found = {"repeat": world.here(path)} | {name: outcome(commands[name]) for name in readers}
            if damaged is None and (file.suffix == ".npz" or file.parent != path):
                found = {"repeat": found["repeat"]}
            for command, (status, lines) in found.items():
                tried += 1
                refused += is_refusal(status, lines)
                if not is_refusal(status, lines):
                    failures.append(f"{command}, {file.name}, {kind}: {status} {lines[-1:]}")
        file.write_bytes(content)
    return {"files": len(files), "cases": tried, "refused in one line": refused, "failures": failures}


def audit_artefacts(world: World, flips: int = 200) -> Figures:
    """Damages copies of `policy.npz` and `prior.npz` outside of a run folder: refused, or the same arrays are read."""
    tried, refused, failures = 0, 0, []
    file = world.folder / "artefact.npz"
    for name, kind in (("policy.npz", "policy"), ("prior.npz", "prior")):
        content = (world.whole / name).read_bytes()
        file.write_bytes(content)
        expected = dict(flatten(read_artefact(file, kind)[1]))
        for damage, damaged in damages(content, world.rng, flips):
            file.write_bytes(damaged)
            tried += 1
            try:
                if dict(flatten(read_artefact(file, kind)[1])) != expected:
                    failures.append(f"{name}, {damage}: other arrays")
            except ArtefactError as error:
                refused += 1
                failures += [f"{name}, {damage}: {error}"] if len(str(error).splitlines()) > 1 else []
            except Exception as error:
                failures.append(f"{name}, {damage}: {type(error).__name__}")
    return {"cases": tried, "refused": refused, "same arrays": tried - refused - len(failures), "failures": failures}


def audit_nested(world: World) -> Figures:
    """Gives files without end, and files that contain themselves, to everything that reads JSON or YAML."""
    older, file = world.copy("nested"), world.folder / "file.yaml"
    (older / "SHA256SUMS").unlink()
    (older / "config.yaml").write_text(read_stamped(older / "config.yaml")[0])  # as before there were checksums
    vault = older / "Replay.vlt" / "one"
    shutil.copytree(world.vault, vault)
    output = str(world.folder / "comparison")
    nested = {"open": "[" * 100_000, "mappings": '{"a": ' * 100_000, "closed": "[" * 500 + "]" * 500}
    itself = {
        "list": "a: &a [*a]",
        "mapping": "&a {preset: smoke, learner: *a}",
        "groups": "output: a\ngroups: &a [*a]",
    }
    readers: dict[str, tuple[Path, Callable[[], Any]]] = {
        "--config": (file, lambda: mamujoco.main(["--config", str(file)])),
        "sweep": (file, lambda: sweep.main([str(file), "--list"])),
    }
    for name in ("config.yaml", "provenance.json", "summary.json"):
        readers[f"report, {name}"] = older / name, lambda: report.main([str(older), "--output", output])
    for name in ("config.yaml", "data.json", "summary.json"):
        readers[f"repeat, {name}"] = older / name, lambda: world.here(older)
    for path in sorted(path for path in vault.rglob("*") if path.is_file() and b"{" in path.read_bytes()[:1]):
        readers[f"vault, {path.relative_to(vault)}"] = path, one_line_errors()(lambda: read_vault(vault, SPEC))
    tried, refused, failures = 0, 0, []
    for reader, (path, command) in readers.items():
        before = path.read_bytes() if path.exists() else b""
        for kind, text in (nested | (itself if path.suffix == ".yaml" else {})).items():
            path.write_text(text)
            status, lines = world.here(older) if reader.startswith("repeat") else outcome(command)
            tried += 1
            refused += is_refusal(status, lines)
            if not is_refusal(status, lines):
                failures.append(f"{reader}, {kind}: {status} {lines[-1:]}")
        path.write_bytes(before)
    return {"readers": len(readers), "cases": tried, "refused in one line": refused, "failures": failures}


def audit_unfinished(world: World, per_file: int = 1) -> Figures:
    """Damages files of an unfinished run, and resumes it: the same numbers, or one line."""
    tried, same, refused, failures = 0, 0, 0, []
    names = [
        "metrics.csv",
        "SHA256SUMS",
        "policy.npz",
        "prior.npz",
        *["provenance.json", "config.yaml"] * 4,
        "data.json",
    ]
    train = world.whole / "checkpoints" / "train"
    steps = sorted((train / "steps").iterdir(), key=lambda step: int(step.name))
    files = [file for step in steps for file in step.rglob("*") if file.is_file()]
    chosen = [str(file.relative_to(world.whole)) for file in world.rng.sample(files, 6)]
    records = [str(file.relative_to(world.whole)) for file in sorted(train.glob("*.json"))]
    for name in [*names, *chosen, *records]:
        kinds = list(damages((world.whole / name).read_bytes(), world.rng, 1))
        for kind, damaged in world.rng.sample(kinds, per_file):
            path = world.copy("unfinished")
            (path / "summary.json").unlink()
            (path / name).write_bytes(damaged)
            status, lines = world.here(path)
            tried += 1
            if is_refusal(status, lines):
                refused += 1
            elif status == 0 and world.is_whole(path) and len(lines) <= 1:
                same += 1
            else:
                failures.append(f"{name}, {kind}: {status} {lines}, whole {world.is_whole(path)}")
    path = world.copy("unfinished")
    (path / "summary.json").unlink()
    for record in (path / "checkpoints" / "train").glob("*.json"):
        record.write_bytes(b"")
    tried += 1
    status, lines = world.here(path)
    warnings, last = lines[:-1], lines[-1:]
    is_clear = is_refusal(status, last) and all(line.startswith("warning: ") for line in warnings)  # one a checkpoint
    refused += is_clear
    if not is_clear:
        failures.append(f"all records: {status} {lines}")
    return {"cases": tried, "same numbers": same, "refused in one line": refused, "failures": failures}


def audit_cache(world: World) -> Figures:
    """Damages the cached denoiser, then all compiled programs; the next run heals and has the same numbers."""
    tried, healed, failures = 0, 0, []
    cache = world.folder / "damaged_cache"

    def attempt(kind: str, is_program: bool) -> None:
        nonlocal tried, healed
        path = world.folder / "on_damaged_cache"
        shutil.rmtree(path, ignore_errors=True)
        status = world.process(path, cache=cache).wait()
        lines = world.log(path)
        tried += 1
        named = is_program or (len(lines) == 1 and "cache" in lines[0] and "run folder" not in lines[0])
        if status == 0 and named and world.is_whole(path):
            healed += 1
        else:
            failures.append(f"{kind}: {status} {lines[-1:]}")

    for kind in ("flip", "truncated", "records"):
        shutil.rmtree(cache, ignore_errors=True)
        shutil.copytree(world.cache, cache)
        (entry,) = (folder for folder in (cache / "denoisers").iterdir() if folder.is_dir())
        for record in entry.glob("*.json"):
            step = entry / "steps" / record.stem
            file = max((file for file in step.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
            file = record if kind == "records" else file
            file.write_bytes(dict(damages(file.read_bytes(), world.rng, 1))["flip" if kind == "flip" else "truncated"])
        attempt(f"denoiser, {kind}", is_program=False)
    for kind in ("flip", "truncated"):
        shutil.rmtree(cache)
        shutil.copytree(world.cache, cache)
        for file in (cache / "xla").glob("*-cache"):
            file.write_bytes(dict(damages(file.read_bytes(), world.rng, 1))[kind])
        attempt(f"compiled programs, {kind}", is_program=True)
    return {"cases": tried, "healed, same numbers": healed, "failures": failures}


def audit_vault(world: World) -> Figures:
    """Damages every file of a vault: refused, or read as the same episodes."""
    tried, refused, same, failures = 0, 0, 0, []
    expected = dict(flatten(vars(read_vault(world.vault, SPEC))))
    path = world.folder / "damaged" / "Replay.vlt" / "one"
    shutil.copytree(world.vault, path)
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        content = file.read_bytes()
        for kind, damaged in damages(content, world.rng, 4):
            file.write_bytes(damaged)
            tried += 1
            try:
                same += (equal := dict(flatten(vars(read_vault(path, SPEC)))) == expected)
                if not equal:
                    failures.append(f"{file.relative_to(path)}, {kind}: other episodes")
            except VaultError:
                refused += 1
            except Exception as error:
                failures.append(f"{file.relative_to(path)}, {kind}: {type(error).__name__}")
        file.write_bytes(content)
    return {"cases": tried, "refused": refused, "same episodes": same, "failures": failures}


def audit_kills(world: World, kills: int = 21, per_run: int = 7) -> Figures:
    """Kills runs at random moments, SIGKILL and SIGTERM in turn, and lets them finish: bit for bit the same."""
    done, in_training, terminated, runs, failures = 0, 0, 0, 0, []
    while done < kills:
        path, cache = world.folder / f"killed{runs}", world.folder / f"cache{runs}"
        cache.mkdir()
        (cache / "xla").symlink_to(world.cache / "xla")  # compiled programs; the denoiser is fitted again
        for _ in range(per_run):
            sent = signal.SIGTERM if done % 2 else signal.SIGKILL
            process, before = world.process(path, cache=cache), rounds_of(path)
            wait_for(process, path, before + world.rng.randrange(3) if done % 3 else None, world.rng)
            if process.poll() is not None:
                break
            process.send_signal(sent)
            status, lines = process.wait(), world.log(path)
            done += 1
            in_training += rounds_of(path) > before
            if sent == signal.SIGTERM and status == 143 and len(lines) == 1 and "drift_job.py" in lines[0]:
                terminated += 1
            elif status != -sent:  # before the command began, SIGTERM ends the interpreter itself
                failures.append(f"{sent.name}: {status} {lines[-1:]}")
        status, lines = world.process(path, cache=cache).wait(), world.log(path)
        if status != 0 or not world.is_whole(path):
            failures.append(f"run {runs} after its kills: {status} {lines[-1:]}")
        runs += 1
    return {
        "kills": done,
        "during training": in_training,
        "SIGTERM with line and 143": terminated,
        "runs, all bit-identical": runs,
        "failures": failures,
    }


def wait_for(process: subprocess.Popen[bytes], path: Path, round_: int | None, rng: random.Random) -> None:
    """Waits until a run has passed a round and some tenths of a second, or some seconds without a round."""
    if round_ is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(1, 8))
        return
    while process.poll() is None and rounds_of(path) <= round_:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.3))


def audit_rivals(world: World) -> Figures:
    """A second process on the run folder of a first one is refused, and the first one is not disturbed."""
    path, failures = world.folder / "contested", []
    first = world.process(path)
    while rounds_of(path) < 0 and first.poll() is None:
        time.sleep(0.05)
    attempts, refused = 0, 0
    while first.poll() is None and attempts < 5:
        status, lines = world.here(path)
        attempts += 1
        refused += is_refusal(status, lines) and "another process" in lines[0]
    if first.wait() != 0 or not world.is_whole(path):
        failures.append(f"the first process: {world.log(path)[-1:]}")
    failures += [f"{attempts - refused} attempts not refused"] if refused < attempts else []
    return {"attempts": attempts, "refused in one line": refused, "failures": failures}


def audit_full_disk(world: World) -> Figures:
    """Runs on disks that fill up: one line, no traceback; with more space the run continues to the same numbers."""
    tried, one_line, continued, failures = 0, 0, 0, []
    for size in ("40k", "700k", "1000k"):
        with small_disk(world.folder / "small", size) as disk:
            if disk is None:
                return {"skipped": "no tmpfs can be mounted here", "failures": []}
            status, lines = world.process(disk / "run").wait(), world.log(disk / "run")
            tried += 1
            if is_refusal(status, lines) and "no space left" in lines[0]:
                one_line += 1
            else:
                failures.append(f"{size}: {status} {len(lines)} lines {lines[-1:]}")
            if size == "700k":
                subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
                status = world.process(disk / "run").wait()
                continued += status == 0 and world.is_whole(disk / "run")
    failures += [] if continued else ["the run did not continue with more space"]
    return {"disks": tried, "one line": one_line, "continued with more space": continued, "failures": failures}


def audit_read_only(world: World) -> Figures:
    """A run folder, an unfinished one, and a cache on a disk that cannot be written: one line each."""
    with small_disk(world.folder / "read_only", "16m") as disk:
        if disk is None:
            return {"skipped": "no tmpfs can be mounted here", "failures": []}
        shutil.copytree(world.whole, disk / "unfinished")
        (disk / "unfinished" / "summary.json").unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        cases = {"new": world.here(disk / "new"), "unfinished": world.here(disk / "unfinished")}
        os.environ["CODA_JAX_CACHE"] = str(disk)
        cases["cache"] = world.here(world.folder / "unwritten")
        os.environ["CODA_JAX_CACHE"] = str(world.cache)
    failures = [
        f"{name}: {status} {lines[-1:]}" for name, (status, lines) in cases.items() if not is_refusal(status, lines)
    ]
    return {"cases": len(cases), "refused in one line": len(cases) - len(failures), "failures": failures}


def audit_soak(world: World, rounds: int = 200) -> Figures:
    """A run of many rounds: its resident memory after a quarter of the rounds and at the end."""
    path = world.folder / "soak"
    process, memory = world.process(path, "--training.num-rounds", str(rounds)), {}
    while process.poll() is None:
        with contextlib.suppress(OSError, StopIteration, ValueError):
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            memory[rounds_of(path)] = int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024
        time.sleep(0.05)
    failures = [] if process.returncode == 0 and rounds_of(path) == rounds else [str(world.log(path)[-1:])]
    seen = sorted(number for number in memory if rounds // 4 <= number <= rounds)
    third = max(1, len(seen) // 3)
    early, late = (float(np.median([memory[n] for n in part])) for part in (seen[:third], seen[-third:]))
    failures += [f"memory grew from {early:.0f} to {late:.0f} MiB"] if late > 1.05 * early else []
    return {
        "rounds": rounds,
        "MiB, rounds 50 to 100": round(early),
        "MiB, rounds 150 to 200": round(late),
        "failures": failures,
    }


AUDITS: dict[str, Callable[[World], Figures]] = {
    "damaged files of a finished run": audit_finished,
    "damaged artefacts": audit_artefacts,
    "nested files": audit_nested,
    "bad flags": audit_flags,
    "faulty vaults": audit_faulty_vaults,
    "damaged sweep": audit_sweep,
    "damaged files of an unfinished run": audit_unfinished,
    "damaged cache": audit_cache,
    "damaged vault": audit_vault,
    "kills at random moments": audit_kills,
    "two processes on one run folder": audit_rivals,
    "full disk": audit_full_disk,
    "read-only folders": audit_read_only,
    "soak": audit_soak,
}


def main() -> int:
    """Runs the audits and prints their figures; returns the number of failures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audits", nargs="*", help=f"some of: {', '.join(AUDITS)}; all by default")
    jax.config.update("jax_num_cpu_devices", 2)  # as in the processes, before the first computation
    names, failures = parser.parse_args().audits or list(AUDITS), 0
    with make_world() as world:
        print("| audit | figures | failures | seconds |\n| --- | --- | --- | --- |", flush=True)
        for name in names:
            start = time.monotonic()
            figures = AUDITS[name](world)
            failed = figures.pop("failures")
            failures += len(failed)
            shown = "; ".join(f"{label}: {value}" for label, value in figures.items())
            print(f"| {name} | {shown} | {len(failed)} | {time.monotonic() - start:.0f} |", flush=True)
            for line in failed:
                print(f"  {name}: {line}", file=sys.stderr, flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(min(1, main()))
