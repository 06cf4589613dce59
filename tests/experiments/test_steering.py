"""Steering in a world without physics: what does not depend on the guidance, what must rise with it, and resuming."""

import contextlib
import csv
import json
import math
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from coda_jax.data.vault import write_vault
from coda_jax.diffusion.generator import GeneratorConfig
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.diffusion.unet import UNetConfig
from coda_jax.schedule import CodaConfig
from experiments import steering
from experiments.guidance import curves
from experiments.guidance.curves import COLUMNS, Errors, Part, curve, missing, read_points, write_points
from experiments.guidance.selection import start_log_likelihood, start_shift
from experiments.pipeline import fitting, run
from experiments.pipeline.learners import LearnerSettings
from experiments.pipeline.settings import PRESETS, ExperimentConfig
from tests.drift import DRIFT, drift_episodes
from tests.lowering import lower_for_accelerators, recorded_programs

FLAGS = shlex.split(
    "--preset tiny --num-updates 4 --num-seeds 2 --num-trajectories 6 --num-steps 32 --guidance 0 1e-6 3e-3 "
    "--scales-per-call 2"
)


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    """A preset of tiny sizes in a world without physics, with the ideal denoiser of Gaussian data.

    It sees every channel alone, so that guidance moves the actions and nothing else. (A handful of Heun steps would be
    so coarse that they turn a shift around.)
    """
    vault = tmp_path_factory.mktemp("vaults") / "drift" / "Replay.vlt" / "one"
    write_vault(vault, drift_episodes(20))
    tiny = ExperimentConfig(
        preset="tiny",
        vault=vault,
        diffusion=SamplerConfig(num_steps=2),
        denoiser=GeneratorConfig(unet=UNetConfig(width=4, channel_multipliers=(1,)), num_updates=2, batch_size=4),
        learner=LearnerSettings(critic_widths=(8,), policy_linear_width=4, policy_hidden_width=4),
        training=CodaConfig(
            horizon=3,
            batch_size=4,
            epochs_per_round=1,
            updates_per_epoch=2,
            num_trajectories=4,
            chunk_size=64,
            evaluation_episodes=2,
        ),
    )
    fit_prior = run.fit_prior

    def ideal(*args):
        fit = fit_prior(*args)
        generator = fit.model.generator._replace(denoise=lambda params, tau, sigma: tau / (1 + sigma**2))
        return fit._replace(model=fit.model._replace(generator=generator))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "fit_prior", ideal)
        patch.setitem(PRESETS, "tiny", tiny)
        patch.setattr(run.mamujoco, "make", lambda task: DRIFT)
        patch.setattr(fitting, "UPDATES_PER_CHUNK", 2)
        for module in (steering, run):
            patch.setattr(module, "enable_compilation_cache", lambda: None)
        patch.setenv("CODA_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def command(*flags: object) -> None:
    with jax.debug_key_reuse(False):  # in one process the checks of key reuse remember earlier commands
        steering.main([*FLAGS, *map(str, flags)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder that was never interrupted."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    command("--run-dir", path)
    return path


@pytest.mark.slow
def test_one_row_for_each_point_and_seed(finished):
    with (finished / "steering.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert all(math.isfinite(float(row["action_response"])) == (row["lambda"] != "0") for row in rows)
    assert len(rows) == 2 * 2 * 3 * 2
    assert {row["policy"] for row in rows} == {"initial", "trained"}
    assert {row["lambda"] for row in rows} == {"0", "1e-06", "0.003"}


@pytest.mark.slow
def test_without_guidance_the_schedule_does_not_matter(finished):
    points = read_points(finished / "steering.csv")
    for policy in ("initial", "trained"):
        annealed, constant = (points[Part(policy, schedule, 32, 0.0)] for schedule in ("annealed", "constant"))
        assert [errors[:3] for errors in annealed.values()] == [errors[:3] for errors in constant.values()]


@pytest.mark.slow
def test_samples_without_guidance_are_the_same_for_both_policies(finished):
    """Only the likelihood depends on who is asked."""
    points = read_points(finished / "steering.csv")
    initial, trained = (points[Part(policy, "annealed", 32, 0.0)] for policy in ("initial", "trained"))
    for seed in (0, 1):
        assert initial[seed][1:3] == trained[seed][1:3]
        assert initial[seed].log_likelihood != trained[seed].log_likelihood


@pytest.mark.slow
def test_likelihood_rises_with_guidance_and_does_not_jump(finished):
    points = read_points(finished / "steering.csv")
    highest = json.loads((finished / "summary.json").read_text())["highest_log_likelihood"]
    assert highest == -0.5 * 3 * 2 * math.log(2 * math.pi)  # H = 3, two agents of one action
    for policy in ("initial", "trained"):
        for schedule in ("annealed", "constant"):
            line = curve(points, policy, schedule, 32, "log_likelihood")
            assert np.all(np.abs(line.at(1e-6) - line.at(0.0)) < 1e-3)
            assert np.all(line.at(3e-3) > line.at(0.0) + 1e-4)
            assert np.all(line.values <= highest)


@pytest.mark.slow
def test_the_summary_tells_the_trained_policies_and_the_cost(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["trained_updates"] == 4 and len(summary["trained_returns_per_seed"]) == 2
    assert set(summary["real"]) == {"real", "real, actions shuffled", "real, steps shuffled"}
    assert summary["wall_seconds"]["sample"] > 0
    pictures = ("likelihood.png", "quality.png", "selection.png")
    assert all((finished / "figures" / name).stat().st_size > 5000 for name in pictures)


@pytest.mark.slow
def test_starts_stay_where_the_denoiser_sees_every_channel_alone(finished):
    """Guidance moves the actions and nothing else, so the recorded windows near the starts are the same throughout."""
    points = read_points(finished / "steering.csv")
    for policy in ("initial", "trained"):
        assert np.all(curve(points, policy, "annealed", 32, "start_shift").values < 1e-5)
        likelihood = curve(points, policy, "annealed", 32, "start_log_likelihood")
        np.testing.assert_allclose(likelihood.values, likelihood.values[:1].repeat(3, axis=0), rtol=1e-4)
    levels = json.loads((finished / "summary.json").read_text())["selection"]
    for policy, sets in levels.items():
        for name, measures in sets.items():
            assert all(len(values) == 2 and np.isfinite(values).all() for values in measures.values()), (policy, name)
    assert all(value < 1e-5 for value in levels["trained"]["data"]["start_shift"])
    assert all(value > 0.02 for value in levels["trained"]["roll-outs"]["start_shift"])  # of two episodes


@pytest.mark.slow
def test_guidance_moves_starts_unless_they_are_recorded(finished, tmp_path, monkeypatch):
    """A denoiser that ties every channel to the first action moves the starts with it."""
    fit_prior = run.fit_prior

    def tied(*args):
        fit = fit_prior(*args)

        def denoise(params, tau, sigma):
            return (tau + 0.5 * jnp.mean(tau, axis=(1, 2), keepdims=True)) / (1.5 + sigma**2)

        return fit._replace(model=fit.model._replace(generator=fit.model.generator._replace(denoise=denoise)))

    monkeypatch.setattr(run, "fit_prior", tied)
    shifts = {}
    for steps in (0, 1):
        path = tmp_path / str(steps)
        command("--run", finished / "training", "--run-dir", path, "--recorded-steps", steps)
        shifts[steps] = curve(read_points(path / "steering.csv"), "trained", "annealed", 32, "start_shift")
    assert np.all(shifts[0].at(3e-3) > 1e-4) and np.all(shifts[0].at(3e-3) > 10 * shifts[0].at(1e-6))
    assert np.all(shifts[1].values < 1e-5)
    steered = yaml.safe_load((tmp_path / "1" / "config.yaml").read_text())["steered"]
    assert steered["recorded_steps"] == 1


@pytest.mark.slow
def test_an_interrupted_command_goes_on_with_the_same_numbers(finished, tmp_path, monkeypatch, capsys):
    """Policies of a run folder, two points a call; the process dies before a third call is kept."""
    flags = ["--run", finished / "training", "--run-dir", tmp_path / "resumed"]

    def die(path, points):
        if len(points) > 3:
            raise RuntimeError("killed")
        write_points(path, points)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(steering, "write_points", die)
        command(*flags)
    kept = read_points(tmp_path / "resumed" / "steering.csv")
    assert len(kept) == 3
    table = tmp_path / "resumed" / "steering.csv"
    whole = table.read_bytes()
    table.write_bytes(whole.replace(b"0.003", b"0.007"))
    assert "does not match cost.json" in refusal(capsys, *flags)
    table.write_bytes(whole)
    sampled = []
    advance = steering.write_points

    def watch(path, points):
        sampled.append(len(points))
        advance(path, points)

    with monkeypatch.context() as patch:
        patch.setattr(steering, "write_points", watch)
        command(*flags)
    assert sampled[0] > len(kept)  # what was kept was not sampled again
    assert (tmp_path / "resumed" / "steering.csv").read_bytes() == (finished / "steering.csv").read_bytes()


@pytest.mark.slow
def test_through_a_denoiser_of_independent_channels_guidance_is_what_it_is_without(finished, tmp_path):
    command("--run", finished / "training", "--run-dir", tmp_path / "through", "--through-denoiser", "True")
    through, alone = (read_points(path / "steering.csv") for path in (tmp_path / "through", finished))
    for part, by_seed in alone.items():
        expected = [errors.log_likelihood for errors in by_seed.values()]
        found = [errors.log_likelihood for errors in through[part].values()]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert yaml.safe_load((tmp_path / "through" / "config.yaml").read_text())["steered"]["diffusion"][
        "through_denoiser"
    ]


@pytest.mark.slow
def test_nans_stop_the_command_and_say_where(finished, tmp_path, capsys, monkeypatch):
    load = steering.load_policies

    def broken(*args):
        policies = load(*args)
        nans = jax.tree.map(lambda leaf: leaf * jnp.nan if leaf.dtype == jnp.float32 else leaf, policies["trained"])
        return {**policies, "trained": nans}

    monkeypatch.setattr(steering, "load_policies", broken)
    line = refusal(capsys, "--run", finished / "training", "--run-dir", tmp_path / "run")
    assert "NaN" in line and "trained policy, schedule annealed, N 32, lambda 0, seed 0" in line
    assert all(part.policy == "initial" for part in read_points(tmp_path / "run" / "steering.csv"))


def refusal(capsys, *flags: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        command(*flags)
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--guidance", "0.1", "1"], ["--guidance", "must be 0"]),
        (["--guidance", "0", "nan"], ["--guidance", "nan"]),
        (["--schedules", "cosine"], ["--schedules", "cosine", "annealed"]),
        (["--num-steps", "1"], ["--num-steps", "at least 2"]),
        (["--num-trajectories", "0"], ["--num-trajectories", "0"]),
        (["--preset", "huge"], ["--preset", "huge"]),
        (["--recorded-steps", "4"], ["--recorded-steps", "4", "horizon, 3"]),
        (["--run", "nowhere"], ["nowhere", "no finished run"]),
    ],
)
def test_bad_flags_are_one_clear_line(capsys, tmp_path, flags, words):
    line = refusal(capsys, "--run-dir", tmp_path / "run", *flags)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_start_shift_is_in_units_and_leaves_constant_features_out():
    rng, unit = np.random.default_rng(0), jnp.array([2.0, 0.5, 0.0])
    reference = jnp.asarray(rng.normal(size=(50, 3)), jnp.float32)
    moved = reference + jnp.array([[2.0, -1.0, 7.0]])
    np.testing.assert_allclose(start_shift(moved, reference, unit), np.sqrt((1.0**2 + 2.0**2) / 2), rtol=1e-5)
    assert start_shift(reference, reference, unit) == 0.0


def test_start_log_likelihood_is_that_of_the_nearest_recorded_windows_in_units():
    recorded = jnp.array([[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 30.0, 1.0]])
    unit, log_likelihood = jnp.array([1.0, 100.0, 0.0]), jnp.array([-1.0, -2.0, -4.0])
    starts = jnp.array([[0.1, 28.0, 9.0], [0.7, 30.0, 1.0]])  # nearest in units: the third, the second
    np.testing.assert_allclose(start_log_likelihood(starts, recorded, unit, log_likelihood), -3.0)


def test_older_files_lack_the_last_measures(tmp_path):
    full = {Part("initial", "annealed", 2, 0.5): {0: Errors(-1.0, 0.5, 0.1, 0.7, 0.2, -3.0)}}
    write_points(tmp_path / "full.csv", full)
    assert read_points(tmp_path / "full.csv") == full
    for lacking in (2, 3):
        lines = (tmp_path / "full.csv").read_text().splitlines()
        (tmp_path / "older.csv").write_text("".join(",".join(line.split(",")[:-lacking]) + "\n" for line in lines))
        (errors,) = read_points(tmp_path / "older.csv")[Part("initial", "annealed", 2, 0.5)].values()
        assert errors[: 6 - lacking] == (-1.0, 0.5, 0.1, 0.7)[: 6 - lacking]
        assert np.isnan(errors[6 - lacking :]).all()


def test_axes_of_the_figure_of_starts_are_named_by_what_they_measure(tmp_path, monkeypatch):
    seen, panels = [], curves.panels

    @contextlib.contextmanager
    def watched(*args):
        with panels(*args) as grid:
            yield grid
            seen.extend((axes.get_ylabel(), len(axes.get_lines())) for axes in grid.flat)

    monkeypatch.setattr(curves, "panels", watched)
    scales, level = (0.0, 0.1, 1.0), {"start_shift": [0.0, 0.1], "start_log_likelihood": [-3.0, -4.0]}
    points = {
        Part(policy, "annealed", 2, scale): {seed: Errors(-1.0, 0.5, 0.1, 0.7, scale, -3.0) for seed in (0, 1)}
        for policy in ("initial", "trained")
        for scale in scales
    }
    references = {policy: {"data": level, "roll-outs": level} for policy in ("initial", "trained")}
    curves.draw_selection(tmp_path / "selection.png", "drift", points, references)
    (shift, lines), (likelihood, _) = seen
    assert "shift of the starts" in shift and "log-likelihood" in likelihood
    assert lines == 2 + 4  # a curve a policy, and both sets of each


def test_a_point_is_missing_until_all_seeds_are_there():
    one, other = Part("initial", "annealed", 2, 0.0), Part("initial", "annealed", 2, 1.0)
    points = {one: {0: Errors(-1.0, 0.5, 0.1), 1: Errors(-2.0, 0.5, 0.1)}, other: {0: Errors(-3.0, 0.5, 0.1)}}
    assert missing([one, other], points, [0, 1]) == [other]


@pytest.mark.slow
def test_every_program_lowers_for_accelerators(tmp_path, monkeypatch):
    with recorded_programs(monkeypatch) as found:
        command("--run-dir", tmp_path / "run")
    lower_for_accelerators(found)
