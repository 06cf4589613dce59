"""The folder of a run: its settings, its results, and its checkpoints.

config.yaml       the resolved configuration, after a line with its checksum; a folder belongs to one configuration
provenance.json   code, libraries and machine that began the run, the changes at each resume, and a checksum
data.json         digest of the dataset; absent from older folders
metrics.csv       long form: one row a seed and evaluation; checkpoints have its rows too
policy.npz        policies after the last saved round, of all seeds (`coda_jax.load_policy`)
prior.npz         the fitted prior (`coda_jax.load_prior`)
dynamics.npz      the fitted one-step model, if the run has one (`coda_jax.load_dynamics`)
checkpoints/      series of checkpoints, one for each phase that can be resumed
figures/          figures
SHA256SUMS        checksums of all files but the checkpoints, and of itself
summary.json      the result, written last; its presence means that the run is finished
"""

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import ArrayLike

from experiments.host.cache import key_of, plain
from experiments.host.checkpoints import Checkpoints
from experiments.host.console import warn
from experiments.host.errors import UserError
from experiments.host.files import (
    CHECKSUMS,
    digest,
    read_checksums,
    read_stamped,
    stamp,
    verify_folder,
    write_atomically,
    write_checksums,
)
from experiments.host.hosts import check_shared, is_first
from experiments.host.loggers import Rows
from experiments.host.provenance import RANDOMNESS, provenance
from experiments.host.records import parse_file, parse_mapping, write_record
from experiments.host.yaml_files import parse_yaml

_LOCK = ".lock"
_AFFECTS_NUMBERS = (
    "commit",
    "diff",
    "versions",
    "python",
    "platform",
    "backend",
    "device",
    "processor",
    "num_devices",
    "visible_cores",
    "numerics",
)
"""Fields of the provenance that can affect the numbers of a run."""


def default_run_dir(
    *, task: str, dataset: str, augmentation: str, guidance: float | str, preset: str, config: Any
) -> Path:
    """The default folder of a run, a function of its configuration only, so the same command resumes its run.

    Args:
        task: name of the task.
        dataset: name of the dataset, or the path of a vault.
        augmentation: kind of augmentation.
        guidance: lambda, the guidance scale, or a word for it.
        preset: name of the preset.
        config: all other settings that identify it; those above may be in it too.
    """
    scale = guidance if isinstance(guidance, str) else f"{guidance:g}"
    name = f"{task}-{Path(dataset).stem}-{augmentation}-g{scale}-{preset}-{key_of(config)}"
    return Path("runs", re.sub(r"[^\w.+-]", "_", name))


class Metrics:
    """`metrics.csv`: one row per seed and evaluation; the first columns are `round` and `seed`.

    `text` is what this process has recorded or restored. Keep it in the notes of a checkpoint: `restore` makes the file
    again from it, whatever happened to the file.
    """

    def __init__(self, path: Path):
        """Represents the file, which need not exist yet; each of `listeners` gets the rows after they are appended."""
        self.path = path
        self.text = ""
        self.listeners: list[Rows] = []

    @property
    def columns(self) -> list[str]:
        """The columns after `round` and `seed`; none before the first evaluation."""
        return self.text.partition("\n")[0].split(",")[2:]

    def append(self, round_: int, seeds: ArrayLike, columns: Mapping[str, ArrayLike]) -> None:
        """Appends the rows of one evaluation; returns when they are on disk.

        Args:
            round_: the round; 0 for measurements before the first.
            seeds: the seed of each row, of shape `[num_seeds]`.
            columns: values of shape `[num_seeds]`, or scalars for all seeds.

        Raises:
            ValueError: the columns differ from those of earlier rounds.
        """
        seeds = np.asarray(seeds)
        values = [np.broadcast_to(np.asarray(column), seeds.shape) for column in columns.values()]
        rows = [[round_, seed, *map(str, row)] for seed, *row in zip(seeds, *values, strict=True)]
        header = _csv([["round", "seed", *columns]])
        if not self.text.startswith(header) and self.text:
            raise ValueError(f"{self.path} has the columns {self.text.splitlines()[0]}, not {header.strip()}")
        self.restore((self.text or header) + _csv(rows))
        for listener in self.listeners:
            listener(round_, seeds, dict(zip(columns, values, strict=True)))

    def restore(self, text: str) -> None:
        """Replaces the file by a `text` of an earlier process; the empty text removes it."""
        self.text = text
        if text:
            write_atomically(self.path, text)
        else:
            self.path.unlink(missing_ok=True)

    def cut_back(self, round_: int) -> None:
        """Restores the file from itself without the rows after `round_`, for a checkpoint of before it had the rows.

        Raises:
            UserError: the file is damaged.
        """
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        header, *rows = text.splitlines(keepends=True) or [""]
        try:
            kept = [row for row in rows if row.endswith("\n") and int(row.split(",", 1)[0]) <= round_]
        except ValueError as error:
            raise UserError(f"{self.path} is damaged; delete the run folder to restart the run") from error
        self.restore("".join([header, *kept]) if kept else "")

    def read(self) -> dict[str, np.ndarray]:
        """Returns the columns by name, each of shape `[rows]`; empty before the first evaluation.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.path.exists():
            return {}
        with self.path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        integer_columns = {"round", "seed"}
        columns = zip(*rows, strict=True)
        return {
            name: np.array(values, int if name in integer_columns else float)
            for name, values in zip(header, columns, strict=True)
        }


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


class RunFolder:
    """A run folder locked by this process; created by `open_run_folder`."""

    def __init__(self, path: Path):
        """Represents the folder at `path`, without accessing it."""
        self.path = path
        self.figures = path / "figures"
        self.metrics = Metrics(path / "metrics.csv")
        self.begun: dict[str, str] = {}
        """Digests of the settings and the provenance, by name, from before the run goes on."""
        self._summary = path / "summary.json"

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self._summary.exists()

    def read_summary(self, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns the result of a finished run, whose files are verified.

        Args:
            fields: the type of each field that must be there; see `records.parse_mapping`.

        Raises:
            UserError: the summary or another file with a checksum is damaged.
        """
        advice = f"delete {self._summary} to make the result again from the last checkpoint"
        verify_run(self.path, advice)
        return parse_mapping(self._summary, json.loads, fields or {}, advice)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the result and the checksums; thereby the run is finished."""
        text = json.dumps(dict(summary), indent=2) + "\n"
        files = [file for folder in (self.path, self.figures) for file in sorted(folder.glob("[!.]*"))]
        digests = {
            file.relative_to(self.path).as_posix(): digest(file)
            for file in files
            if file.is_file() and file.name != CHECKSUMS
        }
        written = {self._summary.name: hashlib.sha256(text.encode()).hexdigest()}
        write_checksums(self.path, digests | self.begun | written)
        write_atomically(self._summary, text)

    def check_dataset(self, digest: str) -> None:
        """Compares the digest of the dataset with the one in the folder, or stores it if the run is unfinished.

        Raises:
            UserError: the run belongs to another dataset.
        """
        file = self.path / "data.json"
        if file.exists():
            advice = "restore it, or choose another --run-dir"
            stored = parse_mapping(file, json.loads, {"dataset": str}, advice)["dataset"]
            if stored != digest:
                raise UserError(
                    f"{self.path} belongs to another dataset, with digest {stored[:12]} there and {digest[:12]} here; "
                    "restore it (machines of different kinds roll out different ones), or choose another --run-dir"
                )
        elif not self.finished:
            write_atomically(file, json.dumps({"dataset": digest}) + "\n")

    @contextlib.contextmanager
    def checkpoints(self, series: str) -> Iterator[Checkpoints]:
        """Opens a series of checkpoints, such as `fit` or `train`."""
        opened = Checkpoints(self.path / "checkpoints" / series)
        try:
            yield opened
        finally:
            opened.close()


@contextlib.contextmanager
def open_run_folder(
    path: Path, config: Any, *, num_devices: int, allow_other_devices: bool = False, defaults: Any = None
) -> Iterator[RunFolder]:
    """Creates or reopens a run folder, and locks it against other processes.

    Of the processes of one run, the first does this, and the others wait for it.

    Args:
        path: the folder; made where it is missing.
        config: all that determines the numbers of the run.
        num_devices: how many devices the seeds are sharded over.
        allow_other_devices: go on although the run began on another number of devices.
        defaults: values assumed for settings newer than the run folder.

    Raises:
        UserError: the folder belongs to another configuration, is locked by another process, started on another number
            of devices, or is not a run folder; it is left unchanged. Or hosts of the run do not share its disk.
    """
    advice = "choose a --run-dir"
    if not is_first():
        check_shared(path, advice)
        yield RunFolder(path)
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        other_entries = {entry.name for entry in path.iterdir()} - {_LOCK, ".config.yaml.partial"}
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{path} is not a folder; choose another --run-dir") from error
    if other_entries and not (path / "config.yaml").exists():
        raise UserError(f"{path} is not a run folder but holds {min(other_entries)}; choose another --run-dir")
    with (path / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process works in {path}; wait for it, or choose another --run-dir") from error
        if (path / "config.yaml").exists():
            check_settings(path, config, defaults)
        else:
            write_atomically(path / "config.yaml", stamp(yaml.safe_dump(plain(config), sort_keys=False)))
        folder = RunFolder(path)
        if not folder.finished:
            (path / CHECKSUMS).unlink(missing_ok=True)
            _check_provenance(path / "provenance.json", provenance(num_devices), allow_other_devices)
            folder.begun = {name: digest(path / name) for name in ("config.yaml", "provenance.json")}
            folder.figures.mkdir(exist_ok=True)
        check_shared(path, advice)
        yield folder


def verify_run(path: Path, advice: str, may_lack: Callable[[str], bool] = lambda name: False) -> None:
    """Verifies all files of a finished run that have a checksum; see `files.verify_folder`.

    Raises:
        UserError: a file is damaged or missing, `SHA256SUMS` included; older runs have none.
    """
    if read_checksums(path, advice) is None and (path / "config.yaml").exists():
        try:
            _, is_stamped = read_stamped(path / "config.yaml")
        except ValueError as error:
            raise UserError(f"{path / 'config.yaml'} is damaged: {error}; {advice}") from error
        if is_stamped:
            raise UserError(f"{path / CHECKSUMS} is missing; {advice}")
    verify_folder(path, advice, may_lack)


def check_settings(path: Path, config: Any, defaults: Any = None) -> None:
    """Raises a `UserError` if the `config.yaml` of a run folder has other settings; see `open_run_folder`."""
    file = path / "config.yaml"
    stored = parse_file(file, parse_yaml, "choose another --run-dir")
    difference = _first_difference(_completed(stored, plain(defaults)), plain(config))
    if difference is not None:
        setting, there, here = difference
        raise UserError(
            f"{file.parent} belongs to another run: {setting} is {there} there and {here} here; "
            "choose another --run-dir or delete that folder"
        )


def _completed(found: Any, defaults: Any) -> Any:
    """A nested mapping, its missing entries filled with defaults."""
    if not (isinstance(found, dict) and isinstance(defaults, dict)):
        return found
    return {**defaults, **{name: _completed(value, defaults.get(name)) for name, value in found.items()}}


def _first_difference(there: Any, here: Any, setting: str = "") -> tuple[str, str, str] | None:
    """Returns the dotted name of the first setting that differs, and its two values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in [*here, *(name for name in there if name not in here)]:
            inner = f"{setting}.{name}".lstrip(".")
            difference = _first_difference(there.get(name, "missing"), here.get(name, "missing"), inner)
            if difference is not None:
                return difference
        return None
    same = there == here or (there != there and here != here)  # NaN equals NaN here
    return None if same else (setting or "the configuration", str(there), str(here))


def _check_provenance(file: Path, current: dict[str, Any], allow_other_devices: bool) -> None:
    """Records the process that began the run, and the differences of each later one."""
    if not file.exists():
        write_record(file, current | {"resumed": []})
        return
    advice = "delete it to continue without the record of the machine that began the run"
    first = parse_mapping(file, json.loads, {"num_devices": int, "resumed": list}, advice)
    if first["num_devices"] != current["num_devices"] and not allow_other_devices:
        raise UserError(
            f"{file.parent} was begun on {first['num_devices']} devices, here are {current['num_devices']}, which "
            "changes the numbers; use the same number, or resume with --allow-other-devices"
        )
    for name, usual in RANDOMNESS.items():
        there, here = (record.get("numerics", {}).get(name, usual) for record in (first, current))
        if there != here:
            raise UserError(
                f"{file.parent} was begun with {name} {there}, here it is {here}, which gives other random numbers; "
                f"set {name.upper()} as it was, or choose another --run-dir"
            )
    changed = {
        name: current[name] for name in _AFFECTS_NUMBERS if name in first and _differ(first[name], current[name])
    }
    if changed:
        warn(f"{', '.join(changed)} changed since {file.parent} was begun: the numbers may differ in the last bits")
    first["resumed"].append(changed)
    write_record(file, first)


def _differ(there: Any, here: Any) -> bool:
    """Whether two entries of a provenance differ; of two mappings, in what both have, because newer ones have more."""
    if isinstance(there, dict) and isinstance(here, dict):
        return any(there[name] != here[name] for name in there.keys() & here.keys())
    return there != here
