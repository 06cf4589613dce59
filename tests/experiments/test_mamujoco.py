"""The main command: bad input, resuming, and what a run folder holds; in a world without physics, to be quick."""

import csv
import dataclasses
import itertools
import json
import shlex
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from coda_jax.data.vault import write_vault
from coda_jax.dynamics.saved import load_dynamics
from coda_jax.envs.rollout import episode_returns
from coda_jax.policy import load_policy
from coda_jax.prior import load_prior, sample_trajectories
from experiments import mamujoco, values
from experiments.evidence.recorded_runs import SYNTHETIC
from experiments.host.cache import cache_folder
from experiments.host.checkpoints import Checkpoints
from experiments.pipeline import run
from experiments.pipeline.settings import check, check_used, read_config, uses
from experiments.pipeline.training import Training
from experiments.values import MEASURES
from tests.drift import DRIFT, SPEC, drift_episodes, noise_episodes
from tests.lowering import lower_for_accelerators, recorded_programs

ROOT = Path(mamujoco.__file__).parents[1]
TINY = shlex.split(
    "--preset smoke --diffusion.num-steps 2 --denoiser.num-updates 2 --denoiser.batch-size 4 "
    "--denoiser.unet.width 4 --denoiser.unet.channel-multipliers 1 "
    "--training.horizon 3 --training.batch-size 4 --training.mix-ratio 0.5 --training.num-rounds 3 "
    "--training.updates-per-epoch 2 --training.num-trajectories 4 "
    "--learner.critic-widths 8 --learner.policy-linear-width 4 --learner.policy-hidden-width 4"
)


@pytest.fixture(scope="module")
def vault(tmp_path_factory):
    """A vault of 20 episodes of the drifting world."""
    path = tmp_path_factory.mktemp("vaults") / "drift" / "Replay.vlt" / "one"
    write_vault(path, drift_episodes(20))
    return path


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    """The command in a world without physics, with a cache of its own, and the compiler's cache of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.mamujoco, "make", lambda task: DRIFT)
        patch.setattr(run, "enable_compilation_cache", lambda: None)
        patch.setenv("CODA_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def command(*flags: str) -> None:
    # A process of its own would start with fresh keys; in this one, the checks of key reuse remember.
    with jax.debug_key_reuse(False):
        mamujoco.main([*TINY, *flags])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, vault):
    """A run folder that was never interrupted."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    command("--vault", str(vault), "--run-dir", str(path))
    return path


def table(path):
    with (path / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_folder_holds_what_it_promises(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["task"] == "2halfcheetah" and summary["augmentation"] == "coda" and summary["guidance"] == 0.6
    assert summary["convention"] == "gymnasium_mamujoco (2halfcheetah)"
    assert summary["synthetic_per_batch"] == 2
    assert summary["num_seeds"] == 2 and summary["updates"] == 3 * 4 * 2
    phases = {"collect", "fit", "compile", "generate", "train", "evaluate", "quality", "total"}
    assert set(summary["wall_seconds"]) == phases
    rows = table(finished)
    assert [(row["round"], row["seed"]) for row in rows] == [(str(r), str(s)) for r in range(4) for s in range(2)]
    last = [float(row["return"]) for row in rows[-2:]]
    np.testing.assert_allclose(summary["returns_per_seed"], last)
    np.testing.assert_allclose(summary["mean"], np.mean(last))
    np.testing.assert_allclose(summary["standard_error"], abs(last[0] - last[1]) / 2)
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["training"]["num_rounds"] == 3
    quality = json.loads((finished / "summary.json").read_text())["sample_quality"]
    synthetic = {"guided", "guided, first round", "unguided"}
    assert set(quality) == {*synthetic, "real", "real, actions shuffled", "real, steps shuffled"}
    assert len({quality[name]["dynamics_error"] for name in synthetic}) == 3
    assert json.loads((finished / "provenance.json").read_text())["num_devices"] == 2
    assert (finished / "figures" / "learning_curve.png").stat().st_size > 5000
    assert (finished / "figures" / "guidance.png").stat().st_size > 5000
    assert {np.float32(row["guidance"]) for row in rows[2:]} == {np.float32(0.6)}
    assert all(0 < float(row["action_spread"]) < 2 for row in rows[2:])


def test_its_policies_and_its_prior_are_loaded_without_data(finished):
    policy = load_policy(finished)
    assert (policy.spec, policy.seeds, policy.rounds) == (SPEC, (0, 1), 3)
    with jax.debug_key_reuse(False):
        returns = episode_returns(DRIFT, policy.act(1), policy.initial_carry((3,)), jax.random.key(0), 3)
        (entry,) = {path.parent for path in cache_folder().glob("denoisers/*/prior.npz")}
        samples = [sample_trajectories(*load_prior(path), jax.random.key(1), 4) for path in (finished, entry)]
    assert np.isfinite(returns).all() and np.ptp(returns) > 0
    assert samples[0].action.shape == (4, 3, 2, 1)
    jax.tree.map(np.testing.assert_array_equal, *samples)


def test_a_finished_run_is_shown_and_not_touched(finished, vault, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    command("--vault", str(vault), "--run-dir", str(finished))
    assert "return after 24 updates" in " ".join(capsys.readouterr().out.split())
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_a_finished_run_of_a_replaced_vault_is_refused(finished, vault, tmp_path, capsys):
    """The vault under its path becomes another; folders without a digest, or without their vault, still open."""
    path, moved = tmp_path / "run", tmp_path / "vault"
    shutil.copytree(finished, path)
    (path / "SHA256SUMS").unlink()
    config = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(config | {"vault": str(moved)}, sort_keys=False))
    shutil.copytree(vault, moved)
    command("--vault", str(moved), "--run-dir", str(path))
    shutil.rmtree(moved)
    command("--vault", str(moved), "--run-dir", str(path))
    assert "no longer exists" in capsys.readouterr().err
    write_vault(moved, drift_episodes(21))
    with pytest.raises(SystemExit) as ended:
        command("--vault", str(moved), "--run-dir", str(path))
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2 and len(lines) == 1 and "belongs to another dataset" in lines[0]
    (path / "data.json").unlink()
    command("--vault", str(moved), "--run-dir", str(path))
    assert "return after 24 updates" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.parametrize("last_saved", [None, 0, 2])
def test_an_interrupted_run_ends_with_the_same_numbers(finished, vault, tmp_path, monkeypatch, capsys, last_saved):
    """The process dies between the rows of a round and its checkpoint, where most is at stake."""
    path = tmp_path / "resumed"
    save = Checkpoints.save

    def save_until(self, step, tree, notes=None):
        if self._folder.name == "train" and (last_saved is None or step > last_saved):
            raise RuntimeError("killed")
        save(self, step, tree, notes)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Checkpoints, "save", save_until)
        command("--vault", str(vault), "--run-dir", str(path))
    assert not (path / "summary.json").exists()
    if last_saved == 2:
        fit_prior = run.fit_prior
        for changed, words in (("data", "from other episodes"), ("denoiser", "with another denoiser")):
            other = {changed: "other"}
            with monkeypatch.context() as patch, pytest.raises(SystemExit):
                patch.setattr(run, "fit_prior", lambda *args, o=other, **more: fit_prior(*args, **more)._replace(**o))
                command("--vault", str(vault), "--run-dir", str(path))
            assert f"has learnt {words}" in " ".join(capsys.readouterr().err.split())
    command("--vault", str(vault), "--run-dir", str(path))
    assert (path / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    whole, resumed = (json.loads((p / "summary.json").read_text()) for p in (finished, path))
    assert whole["returns_per_seed"] == resumed["returns_per_seed"]
    assert whole["sample_quality"] == resumed["sample_quality"]
    jax.tree.map(np.testing.assert_array_equal, load_policy(path).weights, load_policy(finished).weights)


@pytest.mark.slow
def test_an_interrupted_run_with_an_adapted_lambda_ends_with_the_same_numbers(vault, tmp_path, monkeypatch):
    flags = ("--vault", str(vault), "--guidance", "auto", "--guidance-target", "0.4")
    command(*flags, "--run-dir", str(tmp_path / "whole"))
    save = Checkpoints.save

    def save_until(self, step, tree, notes=None):
        if self._folder.name == "train" and step > 1:
            raise RuntimeError("killed")
        save(self, step, tree, notes)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Checkpoints, "save", save_until)
        command(*flags, "--run-dir", str(tmp_path / "resumed"))
    command(*flags, "--run-dir", str(tmp_path / "resumed"))
    assert (tmp_path / "whole/metrics.csv").read_bytes() == (tmp_path / "resumed/metrics.csv").read_bytes()
    scale = np.array([float(row["guidance"]) for row in table(tmp_path / "whole")[2:]]).reshape(3, 2)
    np.testing.assert_allclose(scale[0], 0.1, rtol=1e-5)
    assert (scale[1:] != scale[0]).all() and (scale[1:, 0] != scale[1:, 1]).all()
    assert json.loads((tmp_path / "whole/summary.json").read_text())["guidance"] == "auto"


@pytest.mark.slow
def test_a_run_that_an_older_version_began_goes_on_without_the_newer_columns(vault, tmp_path, monkeypatch, finished):
    path, record = tmp_path / "older", Training._record

    def record_less(self, number, report):
        report = jax.tree.map(jnp.asarray, report)
        metrics = {n: v for n, v in report.metrics.items() if n not in ("guidance", "action_spread")}
        record(self, number, dataclasses.replace(report, metrics=metrics))
        if number == 1:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Training, "_record", record_less)
        command("--vault", str(vault), "--run-dir", str(path))
    command("--vault", str(vault), "--run-dir", str(path))
    newer = [{n: v for n, v in row.items() if n not in ("guidance", "action_spread")} for row in table(finished)]
    assert table(path) == newer
    assert not (path / "figures" / "guidance.png").exists()


@pytest.mark.parametrize(
    "augmentation",
    ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unconditional", "model", "simulated"))],
)
def test_the_baselines_take_the_same_road(vault, tmp_path, finished, augmentation):
    path = tmp_path / augmentation
    more = {"--training.static-trajectories": "4", "--dynamics.num-updates": "2"}
    tiny = dict(zip(TINY[::2], TINY[1::2], strict=True)) | more
    used = [(flag, value) for flag, value in tiny.items() if uses(augmentation, flag[2:].replace("-", "_"))]
    with jax.debug_key_reuse(False):
        flags = ["--vault", str(vault), "--run-dir", str(path), "--augmentation", augmentation]
        mamujoco.main([*itertools.chain(*used), *flags])
    rows, coda_rows = table(path), table(finished)
    assert [row["return"] for row in rows[:2]] == [row["return"] for row in coda_rows[:2]]  # same seeds, untrained
    assert [row["critic_loss"] for row in rows[2:]] != [row["critic_loss"] for row in coda_rows[2:]]
    has_likelihood = [float(row["synthetic_log_likelihood"]) < 0 for row in rows[2:]]
    assert not any(has_likelihood) if augmentation == "none" else all(has_likelihood)
    summary = json.loads((path / "summary.json").read_text())
    assert (summary["denoiser_held_out_loss"] is None) == (augmentation != "unconditional")
    quality = summary["sample_quality"]
    assert (quality is None) if augmentation == "none" else (SYNTHETIC[augmentation] in quality)
    if augmentation == "simulated":
        assert quality["simulated"]["dynamics_error"] < 1e-3 < quality["real, actions shuffled"]["dynamics_error"]


@pytest.mark.slow
def test_burn_in_is_on_recorded_data_alone(vault, tmp_path, finished):
    common = ("--vault", str(vault), "--training.num-rounds", "2")
    command(*common, "--run-dir", str(tmp_path / "unmixed"), "--training.mix-ratio", "0")
    command(*common, "--run-dir", str(tmp_path / "burn_in"), "--training.burn-in", "1")
    unmixed, burnt_in, mixed = table(tmp_path / "unmixed"), table(tmp_path / "burn_in"), table(finished)
    assert burnt_in[:4] == unmixed[:4]  # untrained, and after the first round
    for others in (unmixed[4:], mixed[2:4]):
        assert {row["critic_loss"] for row in others}.isdisjoint(row["critic_loss"] for row in burnt_in[2:])
    assert [float(row["synthetic_log_likelihood"]) < 0 for row in burnt_in] == [False] * 4 + [True] * 2


@pytest.mark.slow
def test_on_a_cpu_the_precision_changes_no_number(vault, tmp_path, finished):
    path = tmp_path / "default"
    command("--vault", str(vault), "--run-dir", str(path), "--precision", "default")
    assert (path / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    provenances = [json.loads((p / "provenance.json").read_text()) for p in (finished, path)]
    assert [p["matmul_precision"] for p in provenances] == ["highest", "default"]


@pytest.mark.slow
def test_every_program_lowers_for_accelerators(vault, tmp_path, monkeypatch):
    with recorded_programs(monkeypatch) as found:
        command("--vault", str(vault), "--run-dir", str(tmp_path / "recorded"), "--denoiser.num-updates", "3")
    names = " ".join(name for name, *_ in found)
    parts = (
        "make_generator.<locals>.init",
        "encode",
        "_fit.<locals>.chunk",
        "held_out_loss",
        "sample_quality",
        "_real_and",
    )
    assert all(part in names for part in parts), names
    assert len(found) >= 8  # also the initial state and the round, which are mapped over seeds, and both datasets'
    lower_for_accelerators(found)


@pytest.mark.slow
def test_a_one_step_model_gives_the_consequences(vault, tmp_path, finished):
    flags = ("--vault", str(vault), "--consequences", "model", "--recorded-steps", "1")
    sizes = ("--dynamics.widths", "32", "--dynamics.num-updates", "400", "--training.num-rounds", "1")
    command(*flags, *sizes, "--run-dir", str(tmp_path / "model"))
    by_model, by_denoiser = (
        json.loads((path / "summary.json").read_text())["sample_quality"]["guided"]
        for path in (tmp_path / "model", finished)
    )
    assert by_model["dynamics_error"] < 0.1 < by_denoiser["dynamics_error"]
    assert by_model["observation_error"] < 1e-6
    assert load_dynamics(tmp_path / "model")[1].target_std.shape == (SPEC.state_dim + 1,)


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--consequences score", "--consequences inpaint", "--keep-fraction 0.5"])
def test_other_sources_of_the_consequences_run_through(vault, tmp_path, finished, flags):
    """The guided trajectories differ from those of a run without the flags; where lambda is 0 the score is off."""
    sizes = () if "inpaint" in flags else ("--dynamics.widths", "8", "--dynamics.num-updates", "2")
    common = ("--vault", str(vault), "--training.num-rounds", "1", "--run-dir", str(tmp_path / "run"))
    command(*common, *flags.split(), *sizes)
    quality, usual = (
        json.loads((path / "summary.json").read_text())["sample_quality"] for path in (tmp_path / "run", finished)
    )
    assert all(np.isfinite(list(errors.values())).all() for errors in quality.values())
    same = {
        kind: np.allclose(list(quality[kind].values()), list(usual[kind].values()), rtol=1e-3)
        for kind in ("guided", "unguided")
    }
    assert same == {"guided": False, "unguided": "score" in flags}


@pytest.mark.slow
def test_another_fit_is_asked_for_by_its_seed(vault, tmp_path, finished):
    path = tmp_path / "fit"
    command("--vault", str(vault), "--run-dir", str(path), "--fit-seed", "1")
    first, other = (json.loads((p / "summary.json").read_text()) for p in (finished, path))
    assert first["denoiser_held_out_loss"] != other["denoiser_held_out_loss"]
    rows, first_rows = table(path), table(finished)
    assert [row["return"] for row in rows[:2]] == [row["return"] for row in first_rows[:2]]  # the same policies
    likelihood = "synthetic_log_likelihood"
    assert [row[likelihood] for row in rows[2:]] != [row[likelihood] for row in first_rows[2:]]


def refusal(capsys, *flags: str) -> str:
    """The one line a command ends with, on stderr, with exit status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        command(*flags)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--task", "3halfcheetah"], ["--task", "3halfcheetah", "2halfcheetah"]),
        (["--dataset", "expert"], ["--dataset", "expert", "replay, good, medium, poor"]),
        (
            ["--task", "2halfcheetah-ogmarl", "--dataset", "good"],
            ["2halfcheetah-ogmarl", "no behaviour teams", "--vault"],
        ),
        (["--data.max-transitions", "100"], ["--data.max-transitions", "--vault"]),
        (["--vault", "a.vlt", "--data.max-transitions", "0"], ["--data.max-transitions", "0"]),
        (["--augmentation", "codas"], ["--augmentation", "codas", "unconditional"]),
        (["--guidance", "-0.1"], ["--guidance", "-0.1"]),
        (["--guidance", "nan"], ["--guidance", "nan"]),
        (["--guidance", "inf"], ["--guidance", "inf"]),
        (["--guidance", "much"], ["--guidance is 'much'", "FLOAT or auto"]),
        (["--guidance", "auto", "--guidance-target", "0"], ["--guidance-target is 0.0", "above 0"]),
        (["--guidance-target", "0.1"], ["--guidance-target is a setting of --guidance auto"]),
        (["--guidance", "auto", "--rollout-noise", "0.2"], ["--guidance-target is 0.2", "above --rollout-noise, 0.2"]),
        (["--num-seeds", "0"], ["--num-seeds", "0"]),
        (["--num-seeds", "two"], ["num-seeds", "two"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--fit-seed", "-1"], ["--fit-seed", "-1"]),
        (["--preset", "huge"], ["--preset", "huge", "laptop"]),
        (["--training.mix-ratio", "1.5"], ["--training.mix-ratio", "1.5"]),
        (["--training.burn-in", "3"], ["--training.burn-in", "3 rounds"]),
        (["--training.horizon", "1"], ["--training.horizon", "1", "2"]),
        (["--consequences", "oracle"], ["consequences", "oracle", "score", "inpaint"]),
        (["--consequences", "model", "--dynamics.reward-inputs", "23"], ["--dynamics.reward-inputs", "23", "below 23"]),
        (["--learner.decay-updates", "23"], ["--learner.decay-updates is 23", "24 updates", "0 or at least 24"]),
        (["--rollout-segments", "2"], ["--rollout-segments", "--consequences denoiser"]),
        (
            ["--recorded-actions", "--recorded-steps", "2", "--consequences", "model", "--rollout-segments", "2"],
            ["--recorded-actions", "--rollout-segments 1"],
        ),
        (["--keep-fraction", "0"], ["--keep-fraction", "0", "above 0"]),
        (["--score-weight", "-1"], ["--score-weight", "-1"]),
        (["--inpainting-passes", "0"], ["--inpainting-passes", "0"]),
        (["--consequences", "inpaint", "--inpainting-sigma", "100"], ["--inpainting-sigma", "100", "sigma-max, 80"]),
        (["--consequences", "inpaint", "--inpainting-sigma", "0.001"], ["--inpainting-sigma", "sigma-min, 0.002"]),
        (["--training.mix-ratio", "0.01"], ["--training.mix-ratio", "0.01", "none"]),
        (
            ["--training.mix-ratio", "0.9", "--training.critic-rows", "recorded"],
            ["--training.critic-rows is recorded", "--training.mix-ratio 0.9", "4 of 4"],
        ),
        (
            ["--training.mix-ratio", "0", "--training.actor-rows", "synthetic"],
            ["--training.actor-rows is synthetic", "--training.mix-ratio 0", "0 of 4"],
        ),
        (["--log", "tensorboard"], ["--log needs tensorboardX"]),
        (["--diffusion.num-steps", "1"], ["--diffusion.num-steps", "at least 2"]),
        (["--vault", "nowhere/at/all.vlt"], ["nowhere/at/all.vlt"]),
        (["--no-such-flag"], ["no-such-flag"]),
        (["--coordinator", "nowhere"], ["--coordinator", "nowhere", "HOST:PORT"]),
        (["--coordinator", "host:99999"], ["--coordinator", "host:99999", "HOST:PORT"]),
        (["--coordinator", "host:9999"], ["--coordinator", "--num-processes", "--process-id"]),
        (["--num-processes", "2"], ["--num-processes", "--coordinator"]),
        (["--coordinator", "cluster", "--process-id", "0"], ["--process-id", "HOST:PORT"]),
        (
            ["--coordinator", "host:9999", "--num-processes", "2", "--process-id", "2"],
            ["--process-id is 2", "at most 1"],
        ),
        (["--coordinator", "host:9999", "--num-processes", "3", "--process-id", "0"], ["--num-seeds 2", "3 processes"]),
    ],
)
def test_bad_flags_are_one_clear_line(capsys, tmp_path, monkeypatch, flags, words):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # as if it were not installed
    line = refusal(capsys, "--run-dir", str(tmp_path / "run"), *flags)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--augmentation none --guidance 3",
            "--guidance is 3.0, but --augmentation none does not use it; leave it at 0.6",
        ),
        (
            "--augmentation none --training.critic-rows synthetic",
            "--augmentation none does not use it; leave it at all",
        ),
        ("--augmentation unconditional --score-weight 7", "--augmentation unconditional does not use it"),
        ("--score-weight 7", "--score-weight is 7.0, but --consequences denoiser does not use it"),
        ("--dynamics.num-updates 7", "--dynamics.num-updates is 7, but --consequences denoiser does not use it"),
        ("--denoiser.condition-dim 3", "--denoiser.condition-dim is 3, but the main job does not use it"),
        ("--vault a.vlt --dataset poor", "--dataset is poor, but --vault does not use it; leave it at replay"),
        ("--vault a.vlt --data.num-episodes 7", "--data.num-episodes is 7, but --vault does not use it"),
    ],
)
def test_settings_that_affect_no_number_are_refused(capsys, monkeypatch, flags, message):
    monkeypatch.setattr(mamujoco, "run", lambda config: None)

    def main(*args: str) -> None:
        mamujoco.main(["--preset", "smoke", *args])

    with pytest.raises(SystemExit) as ended:
        main(*flags.split())
    assert ended.value.code == 2 and message in capsys.readouterr().err
    main("--augmentation", "none", "--guidance", "0.6", "--score-weight", "1")  # the usual values
    main("--consequences", "score", "--score-weight", "7", "--dynamics.num-updates", "7")


def test_the_settings_of_every_recorded_run_are_taken():
    files = list(ROOT.glob("results/laptop/*/config.yaml"))
    assert len(files) > 40
    for file in files:
        config = read_config(file)
        check(config)
        check_used(config)


def test_a_vault_of_another_task_is_refused(capsys, tmp_path, vault, monkeypatch):
    other = DRIFT._replace(spec=type(SPEC)("other", 2, state_dim=3, obs_dim=1, action_dim=1, episode_length=5))
    monkeypatch.setattr(run.mamujoco, "make", lambda task: other)
    assert str(vault) in refusal(capsys, "--vault", str(vault), "--run-dir", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_vault_of_other_dynamics_is_refused_naming_both_conventions(capsys, tmp_path):
    write_vault(tmp_path / "noise", noise_episodes(SPEC, 20, 5))
    line = refusal(capsys, "--vault", str(tmp_path / "noise"), "--run-dir", str(tmp_path / "run"))
    assert "gymnasium_mamujoco (2halfcheetah)" in line and "OG-MARL's mamujoco (2halfcheetah-ogmarl)" in line
    assert not (tmp_path / "run").exists()


def test_a_part_of_a_vault_is_trained_on_if_asked(capsys, tmp_path, vault):
    few = ["--vault", str(vault), "--run-dir", str(tmp_path / "run"), "--data.max-transitions", "9"]
    # One episode: it cannot be split into those to train on and those held out.
    assert "at least 2 of them, got 1" in refusal(capsys, *few)


def test_a_truncated_vault_is_refused(capsys, tmp_path, vault):
    broken = tmp_path / "broken"
    shutil.copytree(vault, broken)
    chunk = max((path for path in broken.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])
    assert str(broken) in refusal(capsys, "--vault", str(broken), "--run-dir", str(tmp_path / "run"))


def test_a_folder_of_another_run_is_refused_and_kept(capsys, finished, vault):
    line = refusal(capsys, "--vault", str(vault), "--run-dir", str(finished), "--guidance", "0.7")
    assert "guidance" in line and "0.6" in line and "0.7" in line
    assert (finished / "summary.json").exists()


def test_a_batch_that_the_devices_do_not_divide_is_refused(capsys, vault, tmp_path):
    line = refusal(capsys, "--vault", str(vault), "--run-dir", str(tmp_path / "run"), "--denoiser.batch-size", "5")
    assert "--denoiser.batch-size 5" in line and "2 devices" in line


def test_nans_stop_the_run_and_say_where(capsys, vault, tmp_path):
    line = refusal(
        capsys, "--vault", str(vault), "--run-dir", str(tmp_path / "run"), "--learner.critic-learning-rate", "3e38"
    )
    assert "NaN in round 1" in line and "update" in line and "seed 0" in line
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_cache_that_cannot_be_written_is_refused(capsys, tmp_path, vault, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CODA_JAX_CACHE", str(tmp_path / "file" / "cache"))
    assert "CODA_JAX_CACHE" in refusal(capsys, "--vault", str(vault), "--run-dir", str(tmp_path / "run"))


def test_the_values_of_a_run_are_measured_once(finished, tmp_path, monkeypatch, capsys):
    flags = [str(finished), "--output", str(tmp_path / "v"), "--num-states", "3", "--num-steps"]
    monkeypatch.setattr(values, "enable_compilation_cache", lambda: None)
    with jax.debug_key_reuse(False):
        values.main([*flags, "4"])
        found = json.loads((tmp_path / "v" / "values.json").read_text())["runs"][finished.name]
        summary = json.loads((finished / "summary.json").read_text())
        assert found["seeds"] == summary["seeds"] and found["return"] == summary["returns_per_seed"]
        assert all(np.isfinite(found[name]).all() for name in MEASURES)
        assert (tmp_path / "v" / "values.png").stat().st_size > 0
        monkeypatch.setattr(values, "measure", None)  # nothing is left to measure
        values.main([*flags, "4"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        values.main([*flags, "5"])
    assert ended.value.code == 2 and "other settings" in capsys.readouterr().err
