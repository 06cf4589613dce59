"""`--estimate`: a table without a run; against closed forms in a world without physics, and against a real run."""

import json
import shlex
import shutil
import subprocess
import sys
import time

import jax
import pytest

from coda_jax.backend import ACCELERATOR, CPU
from coda_jax.data.vault import write_vault
from coda_jax.envs import mamujoco as mujoco_tasks
from experiments import mamujoco
from experiments.host.accelerators import ACCELERATORS, measure_this_machine
from experiments.host.cache import cache_folder
from experiments.host.console import Phase
from experiments.host.devices import set_up_devices
from experiments.host.errors import parse_command
from experiments.host.program_cost import ProgramCost
from experiments.pipeline import estimate, phase_costs, run
from experiments.pipeline.estimate import phases_of, print_estimate
from experiments.pipeline.flags import parse_experiment
from experiments.pipeline.phase_costs import PhaseCost, added, collection_phase
from experiments.tasks.environments import make_task
from experiments.tasks.estimate import phases_of as phases_of_comparison
from experiments.tasks.settings import DEFAULTS, CoordinationConfig
from tests.drift import DRIFT, SPEC, drift_episodes
from tests.experiments.test_mamujoco import TINY


@pytest.fixture
def vault(tmp_path, monkeypatch):
    """A vault of the drifting world, whose physics are this test's."""
    monkeypatch.setattr(estimate.mamujoco, "make", lambda task: DRIFT)
    path = tmp_path / "drift" / "Replay.vlt" / "one"
    write_vault(path, drift_episodes(20))
    return path


@pytest.fixture
def uncompiled(monkeypatch):
    """No program is compiled, and each costs 1."""
    monkeypatch.setattr(phase_costs, "program_cost", lambda *_: ProgramCost(1.0, 1.0, 1.0, 1.0))


def phases(*flags: str, sizes=CPU, num_devices=2) -> dict[str, PhaseCost]:
    return {each.name: each for each in phases_of(parse_experiment([*TINY, *flags]), num_devices, sizes)}


def test_no_augmentation_has_updates_and_evaluation_alone(vault, uncompiled):
    found = phases("--vault", str(vault), "--augmentation", "none")
    steps = {name: (each.steps, each.unit) for name, each in found.items()}
    # Three rounds of 4 epochs of 2 updates; an evaluation before and after each round, of 5 steps.
    assert steps == {"learner": (24, "updates"), "evaluation": (4 * SPEC.episode_length, "physics steps")}


IN_A_FRESH_PROCESS = """
import jax.numpy as jnp
from experiments.host.devices import set_up_devices
from experiments.host.program_cost import ProgramCost
from experiments.pipeline.estimate import show_estimate
from experiments.pipeline.phase_costs import PhaseCost

def phases_of(num_devices, sizes):
    jnp.zeros(1).block_until_ready()  # the backend runs from here on, and its devices are as many as they are
    assert set_up_devices(1).size == num_devices == 1
    return [PhaseCost("physics", 1, "steps", ProgramCost(1.0, 1.0, 1.0, 1.0))]

show_estimate("h100", 4, "highest", phases_of)
"""


def test_the_number_of_devices_is_set_before_the_backend_runs():
    result = subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "estimate for 1 x h100" in result.stdout


@pytest.mark.slow
def test_more_seeds_cost_more(vault):
    flags = ("--vault", str(vault), "--augmentation", "none", "--num-seeds", "4")
    two, one = (phases(*flags, num_devices=num)["learner"].cost for num in (2, 1))
    assert one.flops == pytest.approx(2 * two.flops, rel=0.2)


def test_generation_counts_calls_of_the_denoiser(vault, uncompiled):
    flags = ("--vault", str(vault), "--training.num-trajectories", "8", "--training.chunk-size", "4")
    # Round 0 generates twice, rounds 2 and 3 once; 3 calls of the denoiser for N = 2; chunks of 4 for 1 seed a device.
    on_cpu = phases(*flags)
    assert on_cpu["generation"].steps == 4 * 2 * 3 and on_cpu["generation"].cost.flops == 4 * 2
    assert on_cpu["denoiser fit"].steps == 2 and "dynamics fit" not in on_cpu
    assert phases(*flags, sizes=ACCELERATOR)["generation"].steps == 4 * 1 * 3
    assert phases(*flags, "--diffusion.solver", "dpm++")["generation"].steps == 4 * 2 * 2
    assert phases(*flags, "--consequences", "model")["dynamics fit"].steps == 6000
    rolled_out = phases(*flags, "--augmentation", "simulated")
    # No reference set is told apart where nothing is guided; H = 3.
    assert (rolled_out["generation"].steps, rolled_out["generation"].unit) == (3 * 2 * 3, "tokens")
    assert {"denoiser fit", "dynamics fit"}.isdisjoint(rolled_out)
    modelled = phases(*flags, "--augmentation", "model")
    assert modelled["generation"].steps == 3 * 2 * 3 and modelled["dynamics fit"].steps == 6000
    assert "denoiser fit" not in modelled


def test_the_roll_outs_of_a_named_dataset_are_counted_in_chunks(uncompiled):
    config = parse_experiment(["--preset", "laptop", "--augmentation", "none"])
    env = mujoco_tasks.make("2halfcheetah")
    physics = ProgramCost(20.0, 20.0, 7.0, 20.0)  # of 20 environments
    chunks = collection_phase(env, config.data.num_episodes, physics, 2, CPU)
    assert chunks.steps == 13 * 1000  # 400 episodes, 16 for each of 2 devices
    assert chunks.cost.flops == 13 * 1000 * (16 + 1) and chunks.cost.kernels == 13 * 1000 * (7 + 1)
    assert collection_phase(env, config.data.num_episodes, physics, 1, ACCELERATOR).steps == 1000


def test_phases_of_one_name_are_added():
    one = PhaseCost("learner", 2, "updates", ProgramCost(1.0, 2.0, 3.0, 4.0))
    other = PhaseCost("generation", 1, "tokens", ProgramCost(1.0, 1.0, 1.0, 9.0))
    assert added([one, other, one]) == [one._replace(steps=4, cost=ProgramCost(2.0, 4.0, 6.0, 4.0)), other]


def test_a_comparison_adds_up_its_methods(uncompiled):
    config = parse_command(CoordinationConfig, ["--methods", "CODA (paper)", "oracle, split rows"], DEFAULTS, "--task")
    found = {(each.name, each.unit): each.steps for each in phases_of_comparison(config, 2, CPU)}
    rounds = config.training.num_rounds
    assert found == {
        ("denoiser fit", "updates"): 3000,
        ("dynamics fit", "updates"): 4000,
        ("generation", "denoiser calls"): rounds * 2 * 12,  # 128 trajectories in chunks of 512 for 8 seeds
        ("generation", "tokens"): rounds * 2 * config.training.horizon,
        ("learner", "updates"): 2 * rounds * 100,
        ("evaluation", "physics steps"): 2 * (rounds + 1) * make_task(config.data, "scripted").env.spec.episode_length,
    }


def test_the_table_fits_80_columns_and_names_what_does_not_fit(capsys):
    cost = ProgramCost(flops=1.2e18, bytes=3.4e17, kernels=5e9, memory=7.9e10)
    names = ("data", "denoiser fit", "dynamics fit", "generation", "learner", "evaluation")
    rows = [PhaseCost(name, 1_234_567_890, "denoiser calls", cost) for name in names]
    print_estimate("1 x tpu-v5e", rows, ACCELERATORS["tpu-v5e"], "highest")
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines() if "rates:" not in line and "left out:" not in line) <= 80
    assert "it does not fit" in out
    print_estimate("1 x h100", rows, ACCELERATORS["h100"], "highest")
    assert "it fits with XLA_PYTHON_CLIENT_MEM_FRACTION above 0.75" in capsys.readouterr().out
    print_estimate("1 x h200", rows, ACCELERATORS["h200"], "highest")
    assert "GB, it fits\n" in capsys.readouterr().out


def test_an_unknown_machine_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        mamujoco.main(["--estimate", "abacus"])
    assert exit_.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_the_command_compiles_and_touches_no_run_folder(vault, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CODA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(estimate, "enable_compilation_cache", lambda: None)
    run_dir = tmp_path / "run"
    mamujoco.main([*TINY, "--vault", str(vault), "--run-dir", str(run_dir), "--estimate", "h100"])
    out = capsys.readouterr().out
    assert all(name in out for name in ("denoiser fit", "generation", "learner", "evaluation", "total"))
    assert not run_dir.exists()


REAL = shlex.split(
    "--preset laptop --num-seeds 2 --data.num-episodes 96 --denoiser.num-updates 1000 --training.num-rounds 2 "
    "--training.updates-per-epoch 100 --training.num-trajectories 500"
)
"""The laptop preset, shrunken."""


@pytest.mark.slow
def test_the_estimate_is_within_a_factor_of_2_of_a_run(tmp_path, monkeypatch):
    """The second of two runs, whose programs come from the cache; the first chunk of a phase still includes tracing."""
    monkeypatch.setenv("CODA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run, "enable_compilation_cache", lambda: None)  # that of the tests is on
    chunks: dict[str, list[tuple[float, int]]] = {}
    advance = Phase.advance

    def timed(self, steps: int = 1, note: str = "") -> None:
        chunks.setdefault(self.name, []).append((time.monotonic(), steps))
        advance(self, steps, note)

    monkeypatch.setattr(Phase, "advance", timed)
    with jax.debug_key_reuse(False):
        for number in range(2):
            chunks.clear()
            for folder in ("datasets", "denoisers"):
                shutil.rmtree(cache_folder() / folder, ignore_errors=True)
            mamujoco.main([*REAL, "--run-dir", str(tmp_path / f"run_{number}")])
    summary = json.loads((tmp_path / "run_1" / "summary.json").read_text())["wall_seconds"]

    def of_chunks(name: str) -> float:
        """Seconds of a phase, from the chunks after its first."""
        times, steps = zip(*chunks[name], strict=True)
        return (times[-1] - times[0]) * sum(steps) / sum(steps[1:])

    measured = {
        "data": of_chunks("rolling out 96 episodes"),
        "denoiser fit": of_chunks("fitting the denoiser"),
        "generation": summary["generate"],
        "learner": summary["train"],
        "evaluation": summary["evaluate"],
    }
    config = parse_experiment([*REAL])
    devices = set_up_devices(config.num_seeds).size
    costs = phases_of(config, devices, CPU)
    this = measure_this_machine(devices)
    predicted = {each.name: this.seconds(each.cost, config.precision) for each in costs}
    for name, seconds in measured.items():
        print(f"{name}: predicted {predicted[name]:.1f} s, measured {seconds:.1f} s")
    ratio = sum(predicted.values()) / sum(measured.values())
    assert 0.5 < ratio < 2.0
