"""Partial responses step by step, and the command that maps returns against them, at its smallest."""

import json
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.data.dataset import make_dataset, sample_windows
from coda_jax.marl.input_scale import raw_inputs
from coda_jax.marl.learner import unroll
from coda_jax.marl.maddpg_bc import MaddpgBcConfig, maddpg_bc
from experiments import response_map
from experiments.host.errors import UserError
from experiments.tasks.response import partial_response
from tests.drift import DRIFT, SPEC, drift_episodes

HORIZON = 4


@pytest.mark.parametrize("response", [0.0, 0.4, 1.0])
def test_consequences_follow_the_policy_s_actions_in_part(response):
    """The world moves by a tenth of the actions that are recorded plus a share of the change."""
    learner = maddpg_bc(SPEC, MaddpgBcConfig(), raw_inputs(SPEC))
    state, dataset = learner.init(jax.random.key(0)), make_dataset(drift_episodes(20), HORIZON)
    augmentation = partial_response(DRIFT, learner, HORIZON, 0.0)
    key = jax.random.key(1)
    made = augmentation.sample(state, dataset, jnp.float32(response), jnp.zeros(()), key, 9)
    recorded = sample_windows(dataset, jax.random.split(jax.random.clone(key))[0], 9, HORIZON)
    np.testing.assert_allclose(made.action, unroll(learner, state, made.obs), atol=1e-6)
    moved = recorded.action + response * (made.action - recorded.action)
    np.testing.assert_allclose(made.state[:, 0], recorded.state[:, 0], atol=1e-6)
    np.testing.assert_allclose(made.state[:, 1:], made.state[:, :-1] + 0.1 * moved[:, :-1, :, 0], atol=1e-6)
    np.testing.assert_allclose(made.reward, moved.sum(axis=(2, 3)), atol=1e-5)
    if response == 0.0:
        np.testing.assert_allclose(made.state, recorded.state, atol=1e-5)


def comparison(folder: Path, responses: dict[str, list[float]]) -> Path:
    """A finished comparison of two methods on same side."""
    folder.mkdir()
    summary = {
        "task": "same-side",
        "num_seeds": 2,
        "updates": 1200,
        "dataset_mean_return": 5.0,
        "convention_return": 7.0,
        "returns_per_seed": {"no augmentation": [0.0, 1.0], "CODA+": [5.0, 6.0]},
        "response_per_seed": responses,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text("num_agents: 2\ntraining:\n  mix_ratio: 0.5\n")
    return folder


def test_points_on_the_map_are_the_guided_methods_of_a_comparison(tmp_path):
    points = response_map.points_of(comparison(tmp_path / "new", {"CODA+": [0.9, 1.1]}))
    assert points == [response_map.Point("CODA+", "actor synthetic, cloning recorded", 0.5, 1.0, 5.5)]
    with pytest.raises(UserError, match="has no responses"):
        response_map.points_of(comparison(tmp_path / "old", {}))


@pytest.mark.slow
def test_the_map_is_resumed_and_belongs_to_its_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(response_map, "enable_compilation_cache", lambda: None)
    flags = shlex.split(f"--output {tmp_path / 'map'} --num-seeds 2 --num-rounds 1 --shares 0.5 --responses 0 1")
    with jax.debug_key_reuse(False):
        response_map.main(flags)
    first = json.loads((tmp_path / "map" / "map.json").read_text())
    assert len(first["returns"]) == 4 and (tmp_path / "map" / "map.png").exists()
    monkeypatch.setattr(response_map, "train", None)  # nothing is left to train
    response_map.main(flags)
    picture = (tmp_path / "map" / "map.png").read_bytes()
    response_map.main([*flags, "--comparison", str(comparison(tmp_path / "compared", {"CODA+": [0.9, 1.1]}))])
    assert (tmp_path / "map" / "map.png").read_bytes() != picture
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        response_map.main([*flags, "--seed", "3"])
    assert ended.value.code == 2 and "other settings" in capsys.readouterr().err
    (tmp_path / "map" / "map.json").write_text("[" * 100_000)
    with pytest.raises(SystemExit) as ended:
        response_map.main(flags)
    assert ended.value.code == 2 and "delete it" in capsys.readouterr().err
