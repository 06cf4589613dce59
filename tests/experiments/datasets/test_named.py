"""Rollouts of the named datasets by their schedule, on any number of devices, in an environment without physics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from coda_jax.data.named import record
from coda_jax.data.teams import Teams, save_teams
from coda_jax.marl.matd3 import Matd3Config, team_policy
from experiments.datasets import named as datasets
from experiments.datasets.named import load_dataset
from tests.drift import DRIFT, SPEC


@pytest.fixture(scope="module")
def teams() -> Teams:
    """Two teams with three snapshots each; their weights are those of one network times (10 team + snapshot) / 100."""
    policy = team_policy(SPEC, Matd3Config().width)
    weights = jax.jit(policy.init)(jax.random.key(0), jnp.zeros((SPEC.num_agents, SPEC.obs_dim)))
    scale = (10 * np.arange(2)[:, None] + np.arange(3)) / 100
    return Teams(
        policy=jax.tree.map(lambda leaf: np.multiply.outer(scale, np.asarray(leaf)).astype(np.float32), weights),
        num_steps=np.arange(3),
        returns=np.array([[0.0, 400.0, 6000.0], [390.0, 1500.0, 7000.0]], np.float32),
    )


def mesh_of(num_devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:num_devices]), ("seed",))


@pytest.fixture(scope="module")
def schedule():
    return np.stack([np.arange(37) % 2, np.arange(37) % 3], axis=1)


def test_rollouts_do_not_depend_on_the_number_of_devices(teams, schedule):
    one, two = (record(DRIFT, teams, schedule, mesh_of(number), 0) for number in (1, 2))
    assert np.diff(one.bounds).tolist() == 37 * [SPEC.episode_length]
    jax.tree.map(np.testing.assert_array_equal, one, two)
    other = record(DRIFT, teams, schedule, mesh_of(1), 1)
    assert not np.array_equal(one.state[0], other.state[0])


def test_rollouts_with_early_ends_are_complete(teams, schedule):
    """In an environment that terminates after two steps, all rollouts are kept whole."""

    def step(state, action):
        stepped = DRIFT.step(state, action)
        return dataclasses.replace(stepped, terminal=stepped.time == 2)

    episodes = record(DRIFT._replace(step=step), teams, schedule, mesh_of(1), 0)
    assert np.diff(episodes.bounds).tolist() == 37 * [2, 2, 1]
    assert np.flatnonzero(episodes.truncation).tolist() == list(range(4, 37 * 5, 5))


def test_each_named_dataset_has_its_own_vault(teams, tmp_path, monkeypatch, capsys):
    save_teams(tmp_path / "drift.npz", teams)
    monkeypatch.setenv("CODA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "assets", lambda task: tmp_path / "drift.npz")
    env = DRIFT._replace(spec=type(SPEC)("2halfcheetah", *list(vars(SPEC).values())[1:]))
    recorded = []

    def recording(env, teams, schedule, *args):
        recorded.append(schedule)
        return record(env, teams, schedule, *args)

    monkeypatch.setattr(datasets, "record", recording)
    built = {name: load_dataset(env, name, 8, mesh_of(2)) for name in ("replay", "good", "medium", "poor")}
    assert all(len(episodes.bounds) == 9 for episodes in built.values())
    # The snapshots nearest to 6924, 1485 and 400.
    for schedule, snapshots in zip(recorded[1:], ([2, 2], [1, 1], [1, 0]), strict=True):
        np.testing.assert_array_equal(schedule, 4 * [[0, snapshots[0]], [1, snapshots[1]]])
    again = load_dataset(env, "good", 8, mesh_of(2))
    jax.tree.map(np.testing.assert_array_equal, again, built["good"])
    assert len(recorded) == 4  # the fifth came from the cache
    vaults = sorted(path.name for path in (tmp_path / "cache" / "datasets" / "2halfcheetah").iterdir())
    assert vaults == ["Good.vlt", "Medium.vlt", "Poor.vlt", "Replay.vlt"]

    (damaged,) = (
        path for path in (tmp_path / "cache" / "datasets" / "2halfcheetah" / "Good.vlt").iterdir() if path.is_dir()
    )
    for harm in ("truncated", "without its card"):
        if harm == "truncated":
            largest = max((p for p in damaged.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
            largest.write_bytes(largest.read_bytes()[:10])
        else:
            (damaged / "card.json").unlink()
        healed = load_dataset(env, "good", 8, mesh_of(2))
        jax.tree.map(np.testing.assert_array_equal, healed, built["good"])
        (line,) = capsys.readouterr().err.splitlines()
        assert str(damaged) in line and "cache" in line
        assert damaged.with_name(f".{damaged.name}.damaged").is_dir()
