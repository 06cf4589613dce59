"""The coordination command at its smallest, on two methods."""

import csv
import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.augmentation.base import Augmentation
from coda_jax.data.coordination import SameSideData
from coda_jax.data.dataset import episode_returns, make_dataset, sample_windows
from coda_jax.data.reacher import ReacherData
from coda_jax.data.spread import SpreadData
from coda_jax.data.teams import assets, load_teams, training_snapshots
from coda_jax.envs.coordination import reward as same_side_reward
from coda_jax.envs.simple_spread import team_reward
from coda_jax.marl.input_scale import raw_inputs
from coda_jax.marl.maddpg_bc import MaddpgBcConfig, maddpg_bc
from experiments import coordination
from experiments.tasks import settings
from experiments.tasks.environments import make_task
from experiments.tasks.figures import assignment_shares
from experiments.tasks.response import partial_response
from experiments.tasks.training import response_of
from tests.drift import DRIFT, drift_episodes
from tests.lowering import lower_for_accelerators, recorded_programs

TINY = shlex.split(
    "--num-seeds 2 --num-episodes 20 --denoiser.num-updates 2 --denoiser.batch-size 4 "
    "--denoiser.unet.width 4 --denoiser.unet.channel-multipliers 1 "
    "--dynamics.widths 8 --dynamics.num-updates 2 --diffusion.num-steps 2 --training.num-rounds 2 "
    "--training.updates-per-epoch 2 --training.num-trajectories 4 --training.static-trajectories 4 "
    "--training.batch-size 4 --training.mix-ratio 0.5 --training.evaluation-episodes 2 "
    "--learner.critic-widths 8 --learner.policy-linear-width 4 --learner.policy-hidden-width 4"
)
CHOSEN = ("no augmentation", "CODA+")
TINY += ["--methods", *CHOSEN]


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    """A cache of the test's own, and two of the methods."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordination, "enable_compilation_cache", lambda: None)
        patch.setenv("CODA_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def command(*flags: str) -> None:
    # A process of its own would start with fresh keys; in this one, the checks of key reuse remember.
    with jax.debug_key_reuse(False):
        coordination.main([*TINY, *flags])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    command("--run-dir", str(path))
    return path


def test_the_run_folder_holds_every_seed_of_every_method(finished):
    with (finished / "returns.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["method"], r["seed"], r["updates"]) for r in rows] == [
        (name, str(seed), str(updates)) for name in CHOSEN for seed in range(2) for updates in (0, 2, 4)
    ]
    summary = json.loads((finished / "summary.json").read_text())
    last = [float(row["return"]) for row in rows if row["updates"] == "4"]
    np.testing.assert_allclose([r for name in CHOSEN for r in summary["returns_per_seed"][name]], last)
    assert {path.name for path in (finished / "figures").iterdir()} == {
        "returns.png",
        "conventions.png",
        "guidance.png",
    }
    with (finished / "guidance.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["method"], r["round"], r["seed"]) for r in rows] == [
        ("CODA+", str(number), str(seed)) for number in (1, 2) for seed in range(2)
    ]
    assert {float(row["guidance"]) for row in rows} == {float(np.float32(0.6))}
    assert all(0 < float(row["action_spread"]) < 2 for row in rows)
    responses = summary["response_per_seed"]  # of the guided methods
    assert set(responses) == {"CODA+"} and np.isfinite(responses["CODA+"]).all() and len(responses["CODA+"]) == 2


def test_response_is_one_where_the_task_itself_gives_the_consequences_and_zero_where_the_recorded_actions_do():
    """`partial_response` with a guidance: 0 keeps the recorded actions, another puts the policy's in their place."""
    learner = maddpg_bc(DRIFT.spec, MaddpgBcConfig(), raw_inputs(DRIFT.spec))
    dataset, state = make_dataset(drift_episodes(20), 4), learner.init(jax.random.key(0))
    synthetic = partial_response(DRIFT, learner, 4, 0.0)

    def sample(state, dataset, prior, guidance, key, num):
        guided = synthetic.sample(state, dataset, prior, guidance, jax.random.clone(key), num)
        recorded = sample_windows(dataset, jax.random.split(key)[0], num, 4)
        return jax.tree.map(lambda new, old: jnp.where(guidance > 0, new, old), guided, recorded)

    for response in (0.0, 0.5, 1.0):
        measured = response_of(DRIFT, Augmentation(sample), jnp.float32(0.6), state, dataset, jnp.float32(response))
        np.testing.assert_allclose(measured, response, atol=1e-3)


@pytest.mark.slow
def test_lambda_is_adapted_for_each_seed(tmp_path):
    flags = ("--methods", "CODA+", "--guidance", "auto", "--guidance-target", "0.4")
    command("--run-dir", str(tmp_path / "auto"), *flags)
    with (tmp_path / "auto/guidance.csv").open() as file:
        rows = list(csv.DictReader(file))
    scale, spread = (
        np.array([float(row[name]) for row in rows]).reshape(2, 2) for name in ("guidance", "action_spread")
    )
    np.testing.assert_allclose(scale[0], 0.1, rtol=1e-5)
    np.testing.assert_allclose(scale[1], 0.1 * np.sqrt(spread[0] / 0.4), rtol=1e-4)
    assert scale[1, 0] != scale[1, 1]
    assert "guidance: auto" in (tmp_path / "auto/config.yaml").read_text()


@pytest.mark.slow
def test_an_interrupted_run_continues_with_the_method_it_was_at(finished, tmp_path, monkeypatch):
    path, train = tmp_path / "resumed", coordination.train

    def until_the_second(config, method, world, mesh):
        if method.augmentation == "guided":
            raise RuntimeError("killed")
        return train(config, method, world, mesh)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(coordination, "train", until_the_second)
        command("--run-dir", str(path))

    def only_the_second(config, method, world, mesh):
        assert method.augmentation == "guided"
        return train(config, method, world, mesh)

    monkeypatch.setattr(coordination, "train", only_the_second)
    command("--run-dir", str(path))
    for name in ("returns.csv", "guidance.csv"):
        assert (path / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
def test_spread_has_its_own_defaults_and_picture(tmp_path):
    command("--task", "spread", "--run-dir", str(tmp_path / "spread"))
    settings_of_run = (tmp_path / "spread/config.yaml").read_text()
    assert "num_agents: 3" in settings_of_run and "horizon: 25" in settings_of_run
    summary = json.loads((tmp_path / "spread/summary.json").read_text())
    assert 350 < summary["dataset_mean_return"] < summary["convention_return"] < 700
    figures = {path.name for path in (tmp_path / "spread/figures").iterdir()}
    assert figures == {"returns.png", "conventions.png", "guidance.png"}


def test_shares_of_assignments():
    landmark = np.array([[[0, 1, 2], [1, 2, 0], [1, 0, 2], [0, 0, 2]], [[2, 0, 1]] * 4], float)
    np.testing.assert_allclose(assignment_shares(landmark), [[0.25, 0.25, 0.0, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--task", "spread", "--sharpness", "2"), "--sharpness is a setting of --task same-side"),
        (("--task", "same-side", "--num-conventions", "1"), "--num-conventions is a setting of --task spread"),
        (("--task", "spread", "--num-conventions", "4"), "--num-conventions is 4"),
        (("--task", "2reacher-first", "--num-agents", "3"), "--num-agents is a setting of --task same-side and spread"),
        (("--task", "chess"), "--task is 'chess'"),
        (("--task", "spread", "--dataset", "best"), "--dataset is 'best'"),
        (("--task", "spread", "--dataset", "medium", "--coverage", "0.5"), "--coverage is a setting of scripted teams"),
        (("--training.horizon", "11"), "--training.horizon must be at most 10"),
        (("--half-width", "0"), "--half-width is 0"),
        (("--coverage", "2"), "coverage"),
        (("--reward-inputs", "some"), "--reward-inputs is 'some'"),
        (("--dynamics.reward-inputs", "0"), "--dynamics.reward-inputs is set by --reward-inputs; leave it out"),
        (("--guidance", "much"), "--guidance is 'much'; it must be FLOAT or auto"),
        (("--guidance-target", "0.1"), "--guidance-target is a setting of --guidance auto; leave it out with 0.6"),
        (("--guidance", "auto", "--guidance-start", "2"), "--guidance-start is 2.0; it must be at least 0.001"),
    ],
)
def test_bad_flags_are_one_clear_line(capsys, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as status:
        coordination.main(list(flags))
    error = capsys.readouterr().err
    assert status.value.code == 2 and words in " ".join(error.split()) and "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_program_lowers_for_accelerators(tmp_path, monkeypatch):
    monkeypatch.setenv("CODA_JAX_CACHE", str(tmp_path / "cache"))
    with recorded_programs(monkeypatch) as found:
        command("--run-dir", str(tmp_path / "run"), "--methods", *settings.METHODS)
    assert len(found) >= 2 * len(settings.METHODS)
    lower_for_accelerators(found)


def spread_reward(inputs):
    return jax.vmap(team_reward)(inputs[:, :6].reshape(-1, 3, 2), inputs[:, 6:].reshape(-1, 3, 2))


def reacher_reward(inputs):
    return -jnp.hypot(inputs[:, 0], inputs[:, 1]) - jnp.sum(inputs[:, 2:] ** 2, axis=1)


@pytest.mark.parametrize(
    ("data", "reward"),
    [
        (SameSideData(num_episodes=4), lambda inputs: same_side_reward(SameSideData().task, inputs)),
        (SpreadData(num_episodes=4), spread_reward),
        pytest.param(ReacherData("2reacher-first", num_episodes=4), reacher_reward, marks=pytest.mark.slow),
    ],
)
def test_the_known_inputs_of_a_reward_determine_it(data, reward):
    """By the rewards' own formulas, applied to the inputs alone."""
    task = make_task(data, "scripted")
    steps = task.record(jax.random.key(0))
    now = np.flatnonzero(steps.truncation == 0)
    outcome = np.concatenate([steps.state[now + 1], steps.action[now].reshape(len(now), -1)], axis=1)
    known = jnp.asarray(outcome[:, task.reward_inputs])
    np.testing.assert_allclose(reward(known), steps.reward[now], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("data", [SpreadData(), *(ReacherData(task) for task in settings.REACHERS)])
def test_the_learned_teams_of_a_task_come_with_the_package(data):
    assert make_task(data, "expert").learned_teams.exists()
    assert make_task(data, "scripted").learned_teams is None


@pytest.mark.parametrize("level", ["expert", "medium"])
def test_learned_teams_of_spread_record_episodes(level):
    data = SpreadData(num_episodes=200, noise=0.0)
    episodes = make_task(data, level).record(jax.random.key(0))
    recorded = episode_returns(episodes)
    teams = load_teams(assets("spread"))
    wanted = teams.returns[np.arange(len(teams.returns)), training_snapshots(teams, level)].mean()
    # The stored returns are of ten episodes a team, with a standard deviation of about 80 each.
    assert abs(recorded.mean() - wanted) < 4 * 80 / np.sqrt(10 * len(teams.returns))
