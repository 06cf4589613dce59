"""Consequences sampled anew with start and actions held: closed forms, and the linear world."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.augmentation.base import Augmentation
from coda_jax.augmentation.guided import guided
from coda_jax.augmentation.inpainting import inpaint, inpainted, sampler_below
from coda_jax.diffusion.edm import karras_sigmas
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.ranges import RangeError
from tests.linear import DATASET, POLICY, PRIOR, C, H, linear_model, one_step_error

HEUN, DPM = SamplerConfig(num_steps=32), SamplerConfig(num_steps=16, solver="dpm++")
SOLVERS = pytest.mark.parametrize("config", [HEUN, DPM], ids=["heun", "dpm++"])


def draw(config, scale, passes=None, **held):
    """Guided trajectories, inpainted or not."""
    model = linear_model(config)
    source = guided(model, POLICY, scale)
    if passes is not None:
        source = inpainted(source, model, passes, 1.0, **held)
    return jax.jit(lambda scale: source.sample((), DATASET, PRIOR, scale, jax.random.key(0), 400))(jnp.float32(scale))


@SOLVERS
def test_a_pass_without_held_entries_is_a_step_of_the_closed_form(config):
    """The ODE takes standard normal data from z + sigma eps to (z + sigma eps) / sqrt(1 + sigma^2)."""
    key_z, key = jax.random.split(jax.random.key(0))
    z, sigma = jax.random.normal(key_z, (5000, 2, 3)), 0.7
    nothing = jnp.zeros((1, 2, 3), bool)
    config = sampler_below(config, sigma)
    anew = np.asarray(inpaint(lambda tau, sigma: tau / (1 + sigma**2), key, z, nothing, config))
    correlation = np.corrcoef(anew.ravel(), np.asarray(z).ravel())[0, 1]
    assert correlation == pytest.approx(1 / np.sqrt(1 + sigma**2), abs=0.015)
    assert anew.std() == pytest.approx(1.0, abs=0.02)


def test_held_entries_stay_and_the_others_change():
    key_z, key = jax.random.split(jax.random.key(1))
    z = jax.random.normal(key_z, (50, H, C))
    held = jax.random.bernoulli(jax.random.key(2), 0.5, (1, H, C))
    config = sampler_below(DPM, 1.0)
    anew = inpaint(lambda tau, sigma: tau / (1 + sigma**2), key, z, held, config)
    same = np.isclose(anew, z, atol=1e-5)
    assert same[:, held[0]].all() and same[:, ~held[0]].mean() < 0.01


def test_the_levels_are_those_of_the_sampler_below_the_noise():
    config = dataclasses.replace(HEUN, S_churn=10.0)
    below = sampler_below(config, float(karras_sigmas(32)[20]))
    assert below.num_steps == 12 and below.S_churn == 0.0
    np.testing.assert_allclose(karras_sigmas(12, 0.002, below.sigma_max), karras_sigmas(32)[20:], rtol=1e-3)
    with pytest.raises(RangeError, match="sigma_min"):
        sampler_below(config, 0.001)


@pytest.mark.slow
@SOLVERS
def test_next_states_follow_the_held_actions(config):
    """The one-step error falls from twice the dynamics' noise toward the noise itself, more with each pass."""
    without, once, often = (one_step_error(draw(config, 0.6, passes)) for passes in (None, 1, 4))
    assert without > 1.7 and once < without - 0.1 and often < once - 0.1 and 0.9 < often < 1.4


@pytest.mark.parametrize(("steps", "whole"), [(0, False), pytest.param(3, False, marks=pytest.mark.slow), (3, True)])
def test_start_and_actions_are_those_of_the_source(steps, whole):
    """Also recorded steps, where there are any."""
    source = draw(DPM, 0.6)
    augmentation = Augmentation(lambda state, dataset, prior, guidance, key, num: source, guidance=0.6)
    again = inpainted(augmentation, linear_model(DPM), 2, 1.0, steps, whole)
    made = jax.jit(lambda key: again.sample((), DATASET, PRIOR, jnp.float32(0.6), key, 400))(jax.random.key(0))
    first = max(steps, 1)
    np.testing.assert_array_equal(made.action, source.action)
    np.testing.assert_array_equal(made.state[:, :first], source.state[:, :first])
    np.testing.assert_array_equal(made.obs[:, :first], source.obs[:, :first])
    assert np.mean(made.state[:, first:] != source.state[:, first:]) > 0.99
    if steps:
        assert np.all(made.reward[:, : steps - 1] == source.reward[:, : steps - 1]) == whole
    assert again.guidance == 0.6
