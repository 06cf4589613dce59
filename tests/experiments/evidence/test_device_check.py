"""The comparison of devices, with the CPU in place of an accelerator."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.diffusion.generator import GeneratorConfig
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.diffusion.unet import UNetConfig
from coda_jax.marl.maddpg_bc import MaddpgBcConfig
from coda_jax.presets import PRESETS
from experiments import benchmark
from experiments.evidence import device_check
from experiments.evidence.device_check import (
    CheckSizes,
    Program,
    check_device,
    compare,
    difference,
    measure,
    programs,
    run_on,
)
from tests.drift import DRIFT

TINY = CheckSizes(
    preset=dataclasses.replace(
        PRESETS["laptop"],
        sampler=SamplerConfig(num_steps=3),
        generator=GeneratorConfig(unet=UNetConfig(width=4, channel_multipliers=(1,)), num_updates=20, batch_size=8),
        learner=MaddpgBcConfig(policy_linear_width=4, policy_hidden_width=4, critic_widths=(8,)),
    ),
    environments=2,
    trajectories=4,
    updates=2,
    episode_length=3,
    seeds=(1, 2),
    batches=(8,),
    rollouts=(2,),
    rollout_steps=2,
    seconds=np.inf,
)


def product(x, y):
    return {"y": jnp.tanh(x @ y), "bit": jnp.int32(3)}


@pytest.fixture
def two():
    """Two CPU devices, of which the first stands for the accelerator."""
    return jax.devices("cpu")[:2]


def perturb(monkeypatch, accelerator, wrong):
    """Runs a `wrong` program instead of every program on the accelerator."""

    def run(device, function, *arguments):
        results = run_on(device, function, *arguments)
        return wrong(results) if device == accelerator else results

    monkeypatch.setattr(device_check, "run_on", run)


def test_the_cpu_agrees_with_itself_and_not_with_another_program(two, monkeypatch):
    x = jax.random.normal(jax.random.key(0), (8, 8))
    program = Program("product", jax.jit(product), (x, x), 1e-4)
    same = compare(program, *two)
    assert same.agrees and same.difference == 0.0
    perturb(monkeypatch, two[0], lambda results: results | {"y": results["y"] * 1.001})
    other = compare(program, *two)
    assert not other.agrees and other.where == "['y']"
    assert other.difference == pytest.approx(1e-3, rel=0.01)
    perturb(monkeypatch, two[0], lambda results: results | {"bit": results["bit"] + 1})
    assert compare(program, *two).difference == np.inf


def test_differences_are_relative_to_the_largest_magnitude():
    theirs = np.array([1e-3, -200.0, np.inf], np.float32)
    assert difference(theirs, theirs) == 0.0
    assert difference(theirs + np.array([2.0, 0.0, 0.0], np.float32), theirs) == pytest.approx(0.01)
    assert difference(np.array([np.nan, -200.0, np.inf]), theirs) == np.inf
    assert difference(np.zeros(3, bool), np.zeros(3, bool)) == 0.0
    assert difference(np.zeros(0), np.zeros(0)) == 0.0


def test_networks_are_compared_and_timed_at_highest_precision(two, monkeypatch):
    seen = []

    def program(x):
        seen.append(jax.config.jax_default_matmul_precision)
        return x @ x

    compare(Program("product", jax.jit(program), (jnp.ones((2, 2)),), 0.0), *two)
    work = jax.jit(lambda: program(jnp.ones((3, 3))))
    monkeypatch.setattr(device_check, "_works", lambda env, sizes: [("products", "3", 1, work)])
    assert measure(DRIFT, TINY, two[0], np.inf)[0].rate > 0
    assert set(seen) == {"highest"}


def test_what_would_begin_after_the_deadline_is_left_out(two, monkeypatch, capsys):
    monkeypatch.setattr(device_check, "_works", lambda env, sizes: [("products", "3", 1, lambda: 1 / 0)])
    assert measure(DRIFT, TINY, two[0], -np.inf) == []
    assert "out of time: no products, 3" in capsys.readouterr().out


def test_without_time_for_measurements_the_comparisons_are_written(two, monkeypatch, tmp_path, capsys):
    x = jax.random.normal(jax.random.key(0), (8, 8))
    monkeypatch.setattr(device_check, "programs", lambda *_: iter([Program("product", jax.jit(product), (x, x), 1e-4)]))
    monkeypatch.setattr(device_check, "_works", lambda env, sizes: [("products", "3", 1, lambda: 1 / 0)])
    check_device(DRIFT, dataclasses.replace(TINY, seconds=-1.0), two[0], two[1], tmp_path / "check.json")
    record = json.loads((tmp_path / "check.json").read_text())
    assert [each["agrees"] for each in record["comparisons"]] == [True] and record["throughputs"] == []
    assert "rates" not in capsys.readouterr().out


def test_a_machine_without_accelerator_ends_with_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        benchmark.main(["--check-device"])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --check-device found no accelerator")


@pytest.mark.parametrize("other", ["--gate", "--scaling"])
def test_it_excludes_the_other_measurements(other, capsys):
    with pytest.raises(SystemExit) as exit_:
        benchmark.main(["--check-device", other])
    assert exit_.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_the_whole_check_passes_with_the_cpu_as_accelerator(two, tmp_path, capsys):
    output = tmp_path / "check.json"
    with jax.debug_key_reuse(False):
        check_device(DRIFT, TINY, two[0], two[1], output)
    record = json.loads(output.read_text())
    names = [each["program"] for each in record["comparisons"]]
    assert names[0] == "physics step" and names[-1] == "whole round" and len(names) == 7
    assert all(each["agrees"] for each in record["comparisons"])
    assert [each["size"] for each in record["throughputs"]] == ["2 env.", "batch 8", *["1 seed"] * 2, *["2 seeds"] * 2]
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.slow
def test_each_program_depends_on_its_inputs_by_more_than_its_tolerance(two):
    """A mistake of 5 % in the inputs is no rounding error, and every comparison notices it."""
    with jax.debug_key_reuse(False):
        for program in programs(DRIFT, TINY, two[0]):
            moved = jax.tree.map(
                lambda leaf: leaf * 1.05 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, program.arguments
            )
            right, wrong = (
                program.compared(run_on(two[0], program.function, *arguments))
                for arguments in (program.arguments, moved)
            )
            largest = max(map(difference, jax.tree.leaves(wrong), jax.tree.leaves(right)))
            assert largest > program.tolerance, program.name


@pytest.mark.slow
def test_the_check_fails_where_a_program_differs(two, monkeypatch):
    first = next(programs(DRIFT, TINY, two[1]))
    monkeypatch.setattr(device_check, "programs", lambda env, sizes, cpu: iter([first]))
    monkeypatch.setattr(device_check, "_works", lambda env, sizes: [("products", "3", 1, lambda: jnp.ones(1))])
    perturb(monkeypatch, two[0], lambda results: jax.tree.map(lambda leaf: leaf + 1, results))
    with pytest.raises(SystemExit, match="differ by more than the tolerance in: physics step"):
        check_device(DRIFT, TINY, two[0], two[1], None)
