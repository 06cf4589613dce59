"""The one-step model's score, in a linear world whose consequences are known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax import transforms
from coda_jax.augmentation.dynamics_guide import DynamicsScore, dynamics_guide
from coda_jax.augmentation.guided import guided
from coda_jax.augmentation.model_based import PriorWithDynamics
from coda_jax.diffusion.samplers import SamplerConfig
from tests.linear import DATASET, DYNAMICS, ENV, MODEL, POLICY, PRIOR, STD, C, H, linear_model, one_step_error

HEUN, DPM = SamplerConfig(num_steps=32), SamplerConfig(num_steps=16, solver="dpm++")
BOTH = PriorWithDynamics(prior=PRIOR, dynamics=DYNAMICS)


def draw(config, scale, weight=None, **held):
    """Guided trajectories, with the score of a weight, or without it."""
    score = None if weight is None else DynamicsScore(ENV, MODEL, weight)
    coda = guided(linear_model(config), POLICY, scale, score=score, **held)
    prior = PRIOR if weight is None else BOTH
    return jax.jit(lambda scale: coda.sample((), DATASET, prior, scale, jax.random.key(0), 400))(jnp.float32(scale))


def spread(trajectory):
    return np.sqrt(np.mean((np.asarray(trajectory.action) - 0.6) ** 2))


def test_the_direction_is_toward_the_predictions_and_of_unit_length():
    z = jax.random.normal(jax.random.key(0), (7, H, C)).at[..., -1].set(0.0)
    direction = np.asarray(dynamics_guide(DynamicsScore(ENV, MODEL, 3.0), DYNAMICS, PRIOR.transform)(z))
    x, obs, u, r = np.moveaxis(np.asarray(z, np.float64) * STD[:, 0], -1, 0)[:4]
    expected = np.zeros((7, H, C))
    following = 0.9 * x[:, :-1] + 0.8 * u[:, :-1]
    expected[:, 1:, 0] = (following - x[:, 1:]) / STD[0]
    expected[:, 1:, 1] = (following - obs[:, 1:]) / STD[1]
    expected[:, :, 3] = (x + u - r) / STD[3]
    length = np.linalg.norm(expected, axis=(1, 2), keepdims=True)
    assert length.min() > 1.0
    expected *= 3.0 / length
    np.testing.assert_allclose(direction, expected, atol=2e-3)  # the transform's tables round
    assert not direction[:, 0, :2].any() and not direction[..., 2].any() and not direction[..., 4].any()


def test_near_the_predictions_the_direction_is_the_distance_and_at_them_nothing():
    x = jnp.zeros((2, H, C)).at[1, 2, 3].set(0.1)  # the origin stays there, but for one reward
    z = transforms.forward(PRIOR.transform, x, jax.random.key(1))
    direction = dynamics_guide(DynamicsScore(ENV, MODEL), DYNAMICS, PRIOR.transform)(z)
    expected = np.zeros((2, H, C))
    expected[1, 2, 3] = -0.1 / STD[3, 0]
    np.testing.assert_allclose(direction, expected, atol=2e-3)


@pytest.mark.parametrize("config", [pytest.param(HEUN, marks=pytest.mark.slow), DPM], ids=["heun", "dpm++"])
def test_guided_next_states_follow_the_actions(config):
    """At the same spread of the actions the one-step error falls from twice the dynamics' noise to about that noise."""
    without, with_score = draw(config, 0.6), draw(config, 0.6, 1.0)
    assert one_step_error(without) > 1.7 and one_step_error(with_score) < 1.3
    assert abs(spread(with_score) - spread(without)) < 0.02
    reward_error = with_score.reward - with_score.state[..., 0] - with_score.action[..., 0, 0]
    assert np.abs(reward_error).mean() < 0.02
    assert np.abs(with_score.obs[..., 0] - with_score.state).mean() < 0.02


def test_without_guidance_the_score_changes_nothing():
    jax.tree.map(np.testing.assert_array_equal, draw(DPM, 0.0), draw(DPM, 0.0, 1.0))


@pytest.mark.slow
def test_a_weight_of_nothing_is_the_policy_s_guide_alone():
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), draw(DPM, 0.6), draw(DPM, 0.6, 0.0))
