"""Every numeric field of every command's configuration has a range, and flags outside of it are refused in one line."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import types
from typing import Annotated, Any

import annotated_types as at
import pytest

import coda_jax
import experiments
from coda_jax import ranges
from experiments import benchmark, collect, consequences, coordination, data, fit_study, mamujoco, polynomial, steering
from experiments.pipeline.settings import ExperimentConfig
from tests.out_of_range import leaves, outside

COMMANDS: dict[str, tuple[types.ModuleType, type, list[str]]] = {
    "mamujoco": (mamujoco, ExperimentConfig, []),
    "polynomial": (polynomial, polynomial.PolynomialConfig, []),
    "coordination": (coordination, coordination.CoordinationConfig, []),
    "steering": (steering, steering.SteeringConfig, []),
    "consequences": (consequences, consequences.ConsequencesConfig, ["--output", "x"]),
    "collect": (collect, collect.CollectConfig, []),
    "fit study": (fit_study, fit_study.FitStudyConfig, ["--output", "x"]),
    "benchmark": (benchmark, benchmark.BenchmarkConfig, []),
    "data cards": (data, data.Cards, ["cards"]),
}
"""Module, configuration and required arguments of each command that has numbers."""


def has_two_bounds(hint: Any) -> bool:
    kinds = {type(bound) for bound in ranges.bounds(hint)}
    return bool(kinds & {at.Ge, at.Gt}) and bool(kinds & {at.Le, at.Lt})


FLAGS = [
    pytest.param(
        command, ".".join(path), [outside(hint)[number % len(outside(hint))], *rest], id=f"{command} {path[-1]}"
    )
    for command, (_, config, _) in COMMANDS.items()
    for number, (path, hint, rest) in enumerate(leaves(config))
    if (values := outside(hint))
]
"""One value outside for each flag, below, above or not finite in turn; the dataclasses are tested with all."""


@pytest.mark.parametrize(("command", "flag", "value"), FLAGS)
def test_a_flag_out_of_range_is_refused_in_one_line(command, flag, value, monkeypatch, capsys):
    module, _, required = COMMANDS[command]
    parser = "parse_experiment" if hasattr(module, "parse_experiment") else "parse_command"
    parse = getattr(module, parser)

    def parse_and_stop(*args, **options):
        raise AssertionError(f"accepted: {parse(*args, **options)}")

    monkeypatch.setattr(module, parser, parse_and_stop)
    with pytest.raises(SystemExit) as exit_:
        module.main([*required, f"--{flag.replace('_', '-')}", *value])
    out, err = capsys.readouterr()
    assert exit_.value.code == 2
    assert (out, err.count("\n")) == ("", 1)
    assert f"error: --{flag.replace('_', '-')} is " in err and " must " in err


def configurations() -> list[type]:
    """All dataclasses of settings: those with a default for a number, and what the commands are made of."""
    found = {}
    for package in (coda_jax, experiments):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            for kind in vars(module).values():
                is_own = inspect.isclass(kind) and kind.__module__ == info.name and dataclasses.is_dataclass(kind)
                if is_own and (issubclass(kind, ranges.Ranged) or kind.__name__.endswith(("Config", "Preset"))):
                    found[kind] = None
    return list(found)


@pytest.mark.parametrize("config", configurations(), ids=lambda config: config.__name__)
def test_every_number_of_every_configuration_has_a_range(config):
    numbers = list(leaves(config))
    assert all(has_two_bounds(hint) for _, hint, _ in numbers), numbers
    assert issubclass(config, ranges.Ranged) or not numbers


@pytest.mark.parametrize("config", [config for _, config, _ in COMMANDS.values()], ids=lambda config: config.__name__)
def test_every_value_out_of_range_is_refused(config):
    for path, hint, _ in leaves(config):
        for value in outside(hint):
            assert ranges.violated(ranges.base(hint)(value), hint) is not None, (path, value)


def test_a_number_without_a_range_is_found():
    @dataclasses.dataclass(frozen=True)
    class Settings:
        rate: float = 0.1
        sizes: tuple[int, ...] = (1,)
        half: Annotated[float, at.Gt(0.0)] = 0.1

    assert [has_two_bounds(hint) for _, hint, _ in leaves(Settings)] == [False, False, False]
    assert math.isinf(ranges.bounds(ranges.Positive)[1].lt)
