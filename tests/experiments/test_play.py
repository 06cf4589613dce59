"""The command that plays policies, in a world without physics where their returns are known."""

import csv

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from coda_jax.augmentation.oracle import oracle
from coda_jax.coda import make_trainer
from coda_jax.envs import mamujoco
from coda_jax.marl.input_scale import raw_inputs
from coda_jax.marl.maddpg_bc import MaddpgBcConfig, maddpg_bc
from coda_jax.policy import load_policy, policy_of, save_policy
from coda_jax.schedule import CodaConfig
from experiments import generate, play
from experiments.datasets import film
from experiments.host.checkpoints import Checkpoints
from experiments.host.files import digest, write_checksums
from tests.drift import DRIFT, SPEC
from tests.lowering import lower_for_accelerators, recorded_programs


@chex.dataclass(frozen=True)
class Physics:
    qpos: jax.Array


TRAINING = CodaConfig(horizon=2, num_trajectories=2, num_rounds=1)
SEEDS = (3, 4, 5)
BIAS = (0.5, -0.2, 0.1)
EXPECTED = [SPEC.episode_length * SPEC.num_agents * np.tanh(b) for b in BIAS]
"""The world's return is the sum of all actions; a policy whose last layer is only its bias b acts tanh(b)."""


@pytest.fixture
def run(tmp_path):
    learner = maddpg_bc(SPEC, MaddpgBcConfig(policy_linear_width=3, policy_hidden_width=2), raw_inputs(SPEC))
    states = jax.vmap(learner.init)(jax.random.split(jax.random.key(0), len(SEEDS)))
    last = states.policy["params"]["Dense_1"]
    last["kernel"], last["bias"] = jnp.zeros_like(last["kernel"]), jnp.array(BIAS)[:, None]
    save_policy(tmp_path / "policy.npz", policy_of(SPEC, states, SEEDS, rounds=2))
    return tmp_path


@pytest.fixture(autouse=True)
def world(monkeypatch):
    monkeypatch.setattr(play.mamujoco, "make", lambda name: DRIFT)
    monkeypatch.setitem(play.mamujoco.TASKS, "drift", mamujoco.TASKS["2halfcheetah"])
    monkeypatch.setattr(play, "enable_compilation_cache", lambda: None)


def command(*args):
    with jax.debug_key_reuse(False):
        play.main([*map(str, args)])


def test_returns_are_the_known_ones(run, capsys, monkeypatch):
    monkeypatch.setattr(play, "PARALLEL", 4)
    command(run, "--episodes", 6, "--output", run / "episodes.csv")
    with (run / "episodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["episode"]) for row in rows] == [(str(s), str(e)) for s in SEEDS for e in range(6)]
    returns = np.array([float(row["return"]) for row in rows]).reshape(3, 6)
    np.testing.assert_allclose(returns, np.repeat(np.array(EXPECTED)[:, None], 6, axis=1), rtol=1e-5)
    out = capsys.readouterr().out
    assert all(f"{value:.1f}" in out for value in (*EXPECTED, np.mean(EXPECTED)))
    assert "after 2 rounds: 6 episodes a seed" in " ".join(out.split())


def test_episodes_differ_between_batches_and_start_seeds(run, monkeypatch):
    """With a policy that reads its observations, the starts tell."""
    policy = load_policy(run)
    params = policy.weights.network["params"]
    params["Dense_1"]["kernel"] = jnp.ones_like(params["Dense_1"]["kernel"])
    monkeypatch.setattr(play, "PARALLEL", 2)
    with jax.debug_key_reuse(False):
        returns, others = (play.evaluate(DRIFT, policy, 4, start) for start in (0, 1))
    assert len({*returns[0].tolist(), *others[0].tolist()}) == 8


@pytest.mark.parametrize("purpose", [play._PLAY, generate._GENERATE])
def test_starts_and_samples_share_no_key_with_datasets_and_trainings(purpose):
    """Folding in an index is splitting: `fold_in(key, 1)` was the key of a dataset's second group of episodes."""

    def split(key):
        return set(map(tuple, np.asarray(jax.random.key_data(jax.random.split(key, 512))).tolist()))

    roots = [jax.random.key(seed) for seed in range(6)]
    with jax.debug_key_reuse(False):
        assert tuple(jax.random.key_data(jax.random.fold_in(roots[0], 1)).tolist()) in split(roots[0])
        others = set.union(*map(split, roots))
        for root in roots:
            assert not split(jax.random.fold_in(root, purpose)) & others


def test_a_damaged_policy_of_a_finished_run_is_one_line(run, capsys):
    content = (run / "policy.npz").read_bytes()
    write_checksums(run, {"policy.npz": digest(run / "policy.npz")})
    (run / "policy.npz").write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    for path in (run, run / "policy.npz"):
        with pytest.raises(SystemExit) as ended:
            command(path)
        lines = capsys.readouterr().err.strip().splitlines()
        assert ended.value.code == 2 and len(lines) == 1 and "does not match SHA256SUMS" in lines[0]


def test_intervals_are_student_s():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    assert play.half_width(values) == pytest.approx(3.1824463 * np.sqrt(5 / 3) / 2)  # t_{0.975, 3}
    assert play.half_width(values[:1]) == np.inf


def test_intervals_cover_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(size=(2000, 5))
    covered = [abs(sample.mean()) < play.half_width(sample) for sample in draws]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)  # three standard errors


def test_chosen_seeds_are_exported(run, tmp_path):
    pytest.importorskip("flatbuffers")
    command(run, "--seeds", 5, 3, "--episodes", 1, "--export", tmp_path / "out")
    assert load_policy(tmp_path / "out").seeds == (5, 3)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"policy.npz", "policy-seed3.jax_export", "policy-seed5.jax_export"}
    exported = export.deserialize(bytearray((tmp_path / "out" / "policy-seed3.jax_export").read_bytes()))
    action, _ = exported.call(jnp.zeros((2, 2, 1)), jnp.zeros((2, 2, 2)))
    np.testing.assert_allclose(action, np.tanh(0.5), rtol=1e-6)


@pytest.mark.parametrize(("flags", "names"), [((), ["film.gif"]), (("--film-each",), None)])
def test_the_best_or_each_is_filmed(run, monkeypatch, flags, names):
    filmed = []
    monkeypatch.setattr(play, "film_policy", lambda env, act, carry, path: filmed.append((act, carry, path)) or 1)
    command(run, "--episodes", 1, "--film", run / "film.gif", *flags)
    assert [path.name for *_, path in filmed] == (names or [f"film-seed{seed}.gif" for seed in SEEDS])
    act, carry, _ = filmed[0]
    np.testing.assert_allclose(act(jnp.zeros((2, 1)), carry, None)[0], np.tanh(BIAS[0]), rtol=1e-6)  # the best is first


def test_a_film_follows_the_policy(monkeypatch):
    """A point that moves by its action: positions are those of the policy, with its memory, up to the end."""

    def step(state, action):
        stepped = DRIFT.step(state, action)
        return stepped.replace(physics=state.physics.replace(qpos=stepped.state), terminal=stepped.time >= 3)

    def reset(key):
        state = DRIFT.reset(key)
        return state.replace(physics=Physics(qpos=state.state))

    def act(obs, carry, key):
        return jnp.full((2, 1), carry / 10.0), carry + 1

    positions = film._positions(DRIFT._replace(reset=reset, step=step), act, jnp.zeros(()))
    assert len(positions) == 4
    np.testing.assert_allclose(np.diff(positions[:, 0]), [0.0, 0.01, 0.02], atol=1e-6)


@pytest.fixture
def older_run(tmp_path):
    """A run folder without `policy.npz`, whose checkpoint of round 4 has random weights and some input scales."""
    inputs = raw_inputs(SPEC).replace(obs_mean=jnp.full((2, 1), 0.3), obs_std=jnp.full((2, 1), 2.0))
    learner = maddpg_bc(SPEC, MaddpgBcConfig(policy_linear_width=3, policy_hidden_width=2), inputs)
    trainer = make_trainer(DRIFT, learner, oracle(DRIFT, learner, TRAINING.horizon), TRAINING)
    states = jax.vmap(trainer.init)(jax.random.split(jax.random.key(0), len(SEEDS)))
    checkpoints = Checkpoints(tmp_path / "old" / "checkpoints" / "train")
    for step in (3, 4):
        checkpoints.save(step, states if step == 4 else jax.tree.map(jnp.zeros_like, states))
    checkpoints.close()
    (tmp_path / "old" / "config.yaml").write_text("task: drift\nseed: 3\nnum_seeds: 3\n")
    return tmp_path / "old", policy_of(SPEC, states.learner, SEEDS, rounds=4)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_older_run_is_played_from_its_last_checkpoint(older_run, capsys):
    run, expected = older_run
    before = contents(run)
    command(run, "--seeds", 5, 3, "--episodes", 1, "--export", run.parent / "out")
    assert "no policy.npz; its policies are those of the checkpoint of round 4" in capsys.readouterr().out
    found = load_policy(run.parent / "out")
    assert (found.spec, found.seeds, found.rounds) == (SPEC, (5, 3), 4)
    jax.tree.map(np.testing.assert_array_equal, found.weights, expected.take((5, 3)).weights)
    assert contents(run) == before


def damage(checkpoint):
    file = max(checkpoint.rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over(older_run, capsys):
    run, _ = older_run
    steps = run / "checkpoints/train/steps"
    damage(steps / "4")
    command(run, "--episodes", 1)
    shown = capsys.readouterr()
    assert f"{steps / '4'} is damaged" in shown.out + shown.err and "checkpoint of round 3" in shown.out
    damage(steps / "3")
    with pytest.raises(SystemExit):
        command(run)
    assert "has no intact checkpoint; delete summary.json there" in capsys.readouterr().err


def test_checkpoints_without_input_scales_say_what_to_do(older_run, capsys):
    run, _ = older_run
    checkpoints = Checkpoints(run / "checkpoints" / "train")
    checkpoints.save(5, {"learner": {"policy": jnp.zeros(3)}})
    checkpoints.close()
    assert "too old: they hold no input scales; delete summary.json" in refusal(capsys, run)


def refusal(capsys, *args) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        command(*args)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_bad_flags_are_one_line(run, capsys, tmp_path, monkeypatch):
    assert "there is no file" in refusal(capsys, tmp_path / "nowhere")
    (tmp_path / "coordination").mkdir()
    assert "give a run folder of experiments.mamujoco" in refusal(capsys, tmp_path / "coordination")
    assert "--episodes is 0" in refusal(capsys, run, "--episodes", 0)
    assert "--start-seed" in refusal(capsys, run, "--start-seed", 2**32)
    assert "the run has the seeds (3, 4, 5)" in refusal(capsys, run, "--seeds", 9)
    assert "must end with" in refusal(capsys, run, "--film", "film.mov")
    assert "--film-each needs --film" in refusal(capsys, run, "--film-each")
    assert "--film is" in refusal(capsys, run, "--film", tmp_path / "no" / "film.gif")
    assert "a file" in refusal(capsys, run, "--export", run / "policy.npz")
    monkeypatch.delitem(play.mamujoco.TASKS, "drift")
    assert "plays 'drift'" in refusal(capsys, run)


def test_every_program_lowers_for_accelerators(run, tmp_path, monkeypatch):
    with recorded_programs(monkeypatch) as found:
        command(run, "--episodes", 2)
    lower_for_accelerators(found)
