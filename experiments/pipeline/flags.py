"""The command line of the main job: flags, presets, and `--config FILE`, the settings of another run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.host.cache import flat
from experiments.host.errors import UserError, parse_command
from experiments.host.files import verify
from experiments.host.yaml_files import read_yaml
from experiments.pipeline.settings import PRESETS, ExperimentConfig


def parse_experiment(args: Sequence[str]) -> ExperimentConfig:
    """Reads the settings of a run from a command line.

    `--config FILE` starts from a file with the layout of a run folder's `config.yaml`, YAML or JSON; a setting that it
    lacks is that of its preset. The other flags override it.

    Raises:
        UserError: an unknown flag or preset, an invalid value, `--config` beside `--preset`, or a file that cannot be
            read.
    """
    file, others = _without_config(args)
    if file is None:
        return parse_command(ExperimentConfig, args, presets=PRESETS)
    if any(argument.partition("=")[0] == "--preset" for argument in others):
        raise UserError(f"--config {file} names its own preset; leave --preset out, or --config")
    flags = _flags_of_file(file)
    try:
        parse_command(ExperimentConfig, flags, presets=PRESETS)
    except UserError as error:
        raise UserError(f"--config {file}: {error}") from error
    return parse_command(ExperimentConfig, [*flags, *others], presets=PRESETS)


def flag(name: str, value: Any) -> list[str]:
    """Converts a setting, by its dotted name, into command line arguments."""
    if isinstance(value, bool):
        *outer, last = name.split(".")
        return [f"--{'.'.join([*outer, last if value else f'no-{last}'])}"]
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


def _without_config(args: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file of the last `--config`, and the other arguments."""
    file, others, rest = None, [], iter(args)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name != "--config":
            others.append(argument)
            continue
        value = value if equals else next(rest, "")
        if not value or value.startswith("--"):
            raise UserError("--config needs the path of a file, such as the config.yaml of a run folder")
        file = Path(value)
    return file, others


def _flags_of_file(file: Path) -> list[str]:
    try:
        verify(file, "restore it, or copy it to another folder to change it")
        values = read_yaml(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"it is no YAML ({error})"
        raise UserError(f"--config {file} cannot be read: {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"--config {file} needs settings of the main job, each with its value")
    settings = {name.replace("_", "-"): value for name, value in flat(values).items() if value is not None}
    return [word for name, value in settings.items() for word in flag(name, value)]
