"""Fitted one-step models as files: the same predictions after loading."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.artefact import ArtefactError
from coda_jax.data.dataset import make_dataset
from coda_jax.dynamics.ensemble import Dynamics, DynamicsConfig, make_dynamics
from coda_jax.dynamics.saved import load_dynamics, save_dynamics
from tests.drift import SPEC, drift_episodes

CONFIG = DynamicsConfig(num_members=2, widths=(8, 4), num_updates=2, batch_size=8)


def fit(config: DynamicsConfig) -> Dynamics:
    with jax.debug_key_reuse(False):
        return make_dynamics(SPEC, config).fit(make_dataset(drift_episodes(20), 3), jax.random.key(0))


@pytest.fixture(scope="module")
def fitted():
    return fit(CONFIG)


@pytest.mark.parametrize("reward_inputs", [(), (0,)])
def test_a_loaded_model_predicts_the_same_steps(reward_inputs, tmp_path):
    config = dataclasses.replace(CONFIG, reward_inputs=reward_inputs)
    fitted = fit(config)
    save_dynamics(tmp_path / "dynamics.npz", SPEC, config, fitted)
    model, dynamics = load_dynamics(tmp_path)
    state = jnp.linspace(-1.0, 1.0, 5 * SPEC.state_dim).reshape(5, -1)
    action = 0.3 * jnp.ones((5, SPEC.num_agents, SPEC.action_dim))
    expected = make_dynamics(SPEC, config).predict(fitted, state, action)
    jax.tree.map(np.testing.assert_array_equal, model.predict(dynamics, state, action), expected)


def test_weights_of_other_networks_and_a_missing_file_are_refused(fitted, tmp_path):
    save_dynamics(tmp_path / "dynamics.npz", SPEC, dataclasses.replace(CONFIG, widths=(8, 8)), fitted)
    with pytest.raises(ArtefactError, match="not those of its networks"):
        load_dynamics(tmp_path)
    with pytest.raises(ArtefactError, match="there is no file"):
        load_dynamics(tmp_path / "none.npz")


def test_scales_that_are_not_positive_are_refused(fitted, tmp_path):
    save_dynamics(tmp_path / "dynamics.npz", SPEC, CONFIG, fitted.replace(input_std=0.0 * fitted.input_std))
    with pytest.raises(ArtefactError, match="standard deviations are not positive"):
        load_dynamics(tmp_path)
