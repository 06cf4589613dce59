"""Runs of the main job for all settings in a file: `python -m experiments.sweep experiments/sweeps/laptop.yaml`.

Runs are sequential, each in its own process with a log file next to its run folder. Finished runs are skipped and
interrupted ones resumed; failed runs are listed at the end. `--shard i/n` takes every n-th run, for several machines;
sweeps on a shared disk can also share the work, because each run has a lock.

    for run in shard:
        if finished: skip; if locked: postpone
        experiments.mamujoco(run)       # resumes an interrupted run
"""

import contextlib
import csv
import dataclasses
import fcntl
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import tyro

from experiments.host.console import Phase, duration, phase, say
from experiments.host.errors import FROM_CHECKPOINT, UserError, one_line_errors, parse_command
from experiments.host.run_folder import RunFolder, check_settings
from experiments.host.yaml_files import read_yaml
from experiments.pipeline.flags import flag
from experiments.pipeline.learners import ALGORITHMS, is_of_algorithm
from experiments.pipeline.run import identity_of, run_dir_of
from experiments.pipeline.settings import PRESETS, ExperimentConfig, check, check_choice, not_used_by
from experiments.pipeline.summary import SUMMARY

JOB = (sys.executable, "-m", "experiments.mamujoco")
"""The command of a run, without its flags."""

NAMED = ("task", "dataset", "augmentation", "guidance", "preset")
"""Settings in the name of a run folder."""

POLL_SECONDS = 2.0
"""Seconds between two checks of a run's progress."""


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Runs the main job for every combination of settings in a file."""

    settings: Annotated[Path, tyro.conf.Positional]
    """A YAML file; see `experiments/sweeps/laptop.yaml`."""
    shard: str = "1/1"
    """`i/n` selects every n-th run, starting with the i-th: `1/4` ... `4/4` on four machines."""
    output: Path | None = None
    """Parent folder of the run folders; by default `output` of the file."""
    list: bool = False
    """Only print the runs and their progress."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    name: str
    """Name of the run folder, derived from the settings."""
    note: str
    """The settings that are not part of the name."""
    flags: tuple[str, ...]
    """Flags of the main job."""
    config: ExperimentConfig
    path: Path
    """The run folder."""

    @property
    def title(self) -> str:
        """Name and note."""
        return f"{self.name}  {self.note}".rstrip()

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return (self.path / "summary.json").exists()

    def summary(self) -> dict[str, Any]:
        """The result of a finished run.

        Raises:
            UserError: it is damaged.
        """
        return RunFolder(self.path).read_summary({name: SUMMARY[name] for name in ("mean", "standard_error")})

    @property
    def work(self) -> int:
        """Total number of learner updates of all seeds."""
        training = self.config.training
        return self.config.num_seeds * training.num_rounds * training.epochs_per_round * training.updates_per_epoch

    def done(self) -> int:
        """Number of completed learner updates of all seeds, from `metrics.csv`."""
        if self.finished:
            return self.work
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError, csv.Error):
            with (self.path / "metrics.csv").open(encoding="utf-8", newline="") as file:
                last = list(csv.DictReader(file))[-1]
            return min(self.work, self.config.num_seeds * int(float(last["updates"])))
        return 0


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command; exit status 1 if a run failed."""
    with one_line_errors(FROM_CHECKPOINT):
        config = parse_command(SweepConfig, args)
        runs = shard(read_sweep(config.settings, config.output), config.shard)
        for run in runs:
            if run.finished:  # the preset may have changed since then
                check_settings(run.path, identity_of(run.config), identity_of(PRESETS[run.config.preset]))
                run.summary()  # a damaged one is refused before anything is run
        if config.list:
            print_states(runs, {})
            return
        failures = sweep(runs)
        print_states(runs, failures)
        if failures:
            print(f"{len(failures)} of {len(runs)} runs failed; the same command retries them", file=sys.stderr)
            sys.exit(1)


def read_sweep(file: Path, output: Path | None = None) -> list[Run]:
    """Reads a file of settings and checks every run in it, before the first one starts.

    The file has `output` (a folder), `settings` (flags of the main job for all runs) and `groups`, a list of mappings
    with a `grid` (flag -> list of values, of which all combinations are run) and `settings` of their own. A setting
    that a run does not use takes its default, and equal runs are run once.

    Raises:
        UserError: the file cannot be read, or the main job rejects a setting.
    """
    try:
        sweep = read_yaml(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not (isinstance(sweep, dict) and isinstance(sweep.get("groups"), list) and isinstance(sweep.get("output"), str)):
        raise UserError(f"{file} is not a sweep file: it needs `output`, a folder, and `groups`, a list")
    unknown = set(sweep) - {"output", "settings", "groups"}
    if unknown:
        raise UserError(f"{file} has {min(unknown)}, which is not a field of sweeps; use output, settings and groups")
    folder = output or Path(sweep["output"])
    runs: dict[str, Run] = {}
    for number, group in enumerate(sweep["groups"]):
        where = f"{file}, group {number + 1}"
        if not isinstance(group, dict) or not set(group) <= {"grid", "settings"}:
            raise UserError(f"{where}: a group can only have `grid` and `settings`")
        grid = flags_of(group, "grid", where)
        if not all(isinstance(values, list) and values for values in grid.values()):
            raise UserError(f"{where}: the grid needs a list of values for each flag")
        own = flags_of(group, "settings", where)
        both = sorted(set(grid) & set(own))
        if both:
            raise UserError(f"{where}: {both[0]} stands in its grid and in its settings; remove one")
        common = {**flags_of(sweep, "settings", str(file)), **own}
        for values in itertools.product(*grid.values()):
            try:
                run = make_run({**common, **dict(zip(grid, values, strict=True))}, folder)
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            runs.setdefault(run.name, run)
    if not runs:
        raise UserError(f"{file} has no runs: its `groups` are empty; add a group")
    return list(runs.values())


def flags_of(part: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    """A mapping of flags in a sweep file, spelt with hyphens and without `no-`; empty if it is missing.

    Raises:
        UserError: it is not a mapping of flags, has a flag in two spellings, or names the run folder or a coordinator.
    """
    flags = part.get(name, {})
    if not isinstance(flags, dict) or not all(isinstance(flag, str) and flag != "help" for flag in flags):
        raise UserError(f"{where}: `{name}` needs flags of the main job, each with its value")
    spelt: dict[str, Any] = {}
    for name_given, value in flags.items():
        plain_name, plain_value = without_no(name_given.replace("_", "-"), value)
        if plain_name in spelt:
            raise UserError(f"{where}: `{name}` has {plain_name} in two spellings; remove one")
        spelt[plain_name] = plain_value
    for chosen, reason in (
        ("run-dir", "which the sweep chooses for each run"),
        ("coordinator", "which a sweep cannot set for all its runs"),
        ("estimate", "with which nothing runs"),
    ):
        if chosen in spelt:
            raise UserError(f"{where}: `{name}` has {chosen}, {reason}; remove it")
    return spelt


def without_no(name: str, value: Any) -> tuple[str, Any]:
    """The flag of a switch and its value, or list of values, also if it is spelt `no-`; other flags as they are."""
    group, dot, last = name.rpartition(".")
    values = value if isinstance(value, list) else [value]
    if not last.startswith("no-") or not all(isinstance(each, bool) for each in values):
        return name, value
    opposite = [not each for each in values]
    return f"{group}{dot}{last.removeprefix('no-')}", opposite if isinstance(value, list) else opposite[0]


def make_run(settings: Mapping[str, Any], folder: Path) -> Run:
    """The run for a mapping of flags, spelt with hyphens; unused flags are ignored.

    Raises:
        UserError: the main job rejects a setting.
    """
    all_given = parse_command(ExperimentConfig, arguments(settings), presets=PRESETS)
    check_choice("--algorithm", all_given.algorithm, ALGORITHMS)

    def is_used(setting: str) -> bool:
        return not_used_by(all_given, setting) is None and is_of_algorithm(all_given.algorithm, setting)

    used = {name: value for name, value in settings.items() if is_used(name.replace("-", "_"))}
    flags = arguments(used)
    config = parse_command(ExperimentConfig, flags, presets=PRESETS)
    check(config)
    note = ", ".join(f"{name.split('.')[-1]} {value}" for name, value in used.items() if name not in NAMED)
    name = run_dir_of(config).name
    return Run(name, note, flags, config, folder / name)


def arguments(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Converts settings into command line arguments of the main job."""
    return tuple(word for name, value in settings.items() for word in flag(name, value))


def shard(runs: Sequence[Run], which: str) -> list[Run]:
    """Every n-th run, starting with the i-th, for `which` = "i/n".

    Raises:
        UserError: the shard is not one of 1/n ... n/n.
    """
    try:
        index, count = map(int, which.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 1 <= index <= count:
        raise UserError(f"--shard is '{which}'; it must be i/n, with i from 1 to n")
    return list(runs[index - 1 :: count])


def sweep(runs: Sequence[Run]) -> dict[str, str]:
    """Runs the unfinished runs; returns the last output line of each failed run, by name.

    Runs that are locked by another process are postponed to the end.
    """
    failures: dict[str, str] = {}
    with phase(
        "sweep, in updates", total=sum(run.work for run in runs), done=sum(run.done() for run in runs)
    ) as progress:
        elsewhere = []
        for number, run in enumerate(runs):
            if not attempt(run, f"{number + 1} of {len(runs)}", progress, failures, wait=False):
                elsewhere.append((number, run))
        for number, run in elsewhere:
            say(f"waiting for another process that runs {run.name}")
            attempt(run, f"{number + 1} of {len(runs)}", progress, failures, wait=True)
    return failures


def attempt(run: Run, number: str, progress: Phase, failures: dict[str, str], wait: bool) -> bool:
    """Runs a run under its lock; returns False if another process holds it, and `wait` is False."""
    with exclusive(run.path, wait) as lock:
        if lock is None:
            return False
        if not run.finished:
            last_words = launch(run, number, progress, lock)
            if last_words is not None:
                failures[run.name] = last_words
                say(f"run {number} failed: {last_words}")
    return True


@contextlib.contextmanager
def exclusive(path: Path, wait: bool) -> Iterator[int | None]:
    """The lock of a run, as a file descriptor; None if another process holds it and `wait` is False.

    The process of the run inherits the lock, and keeps it if only the sweep is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file.fileno()


def launch(run: Run, number: str, progress: Phase, lock: int) -> str | None:
    """Runs the main job to its end, with its progress; returns its last line if it failed."""
    say(f"run {number}: {run.title}")
    start, before = time.monotonic(), run.done()
    log = run.path.with_name(f"{run.name}.log")
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [*JOB, *run.flags, "--run-dir", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
        )
        with killed_at_the_end(process):
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
                done = run.done()
                if done > before:
                    progress.advance(done - before, f"run {number}")
                    before = done
    if process.returncode == 0 and run.finished:
        say(f"run {number} finished in {duration(time.monotonic() - start)}")
        return None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"exit status {process.returncode}: {lines[-1] if lines else 'no output'} (see {log})"


@contextlib.contextmanager
def killed_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kills the process of a run when the block ends, or when SIGTERM ends the sweep by the handler that stands.

    The next sweep resumes the run from its last checkpoint.
    """
    end_sweep = signal.getsignal(signal.SIGTERM)
    assert callable(end_sweep)

    def end_both(number: int, frame: FrameType | None) -> None:
        process.kill()
        end_sweep(number, frame)

    signal.signal(signal.SIGTERM, end_both)
    try:
        yield
    finally:
        process.kill()
        process.wait()
        signal.signal(signal.SIGTERM, end_sweep)


def print_states(runs: Sequence[Run], failures: Mapping[str, str]) -> None:
    """Prints the outcome of the runs, a line each: return +- standard error, folder, and settings not in its name."""
    for run in runs:
        if run.finished:
            summary = run.summary()
            error = summary["standard_error"]
            state = f"{summary['mean']:.0f}" + ("" if error is None else f" +- {error:.0f}")
        else:
            state = "failed" if run.name in failures else f"{run.done() / run.work:.0%} done"
        say(f"{state:>14}  {run.title}")


if __name__ == "__main__":
    main()
