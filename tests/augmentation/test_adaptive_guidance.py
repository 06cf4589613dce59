"""Adaptive guidance on a Gaussian prior whose denoiser is known, toward linear policies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from coda_jax import transforms
from coda_jax.augmentation.adaptive_guidance import AdaptiveGuidance, GuidanceState, adapt_scale, initial_guidance
from coda_jax.augmentation.base import Augmentation
from coda_jax.coda import across_seeds, make_trainer
from coda_jax.data.dataset import make_dataset
from coda_jax.diffusion.edm import karras_sigmas
from coda_jax.diffusion.guidance import gaussian_log_prob, guidance_schedule, score_guide
from coda_jax.diffusion.samplers import SamplerConfig, sample
from coda_jax.evaluation import action_log_likelihood, action_spread
from coda_jax.marl.learner import Learner, unroll
from coda_jax.ranges import RangeError
from coda_jax.schedule import CodaConfig
from experiments.host.checkpoints import Checkpoints
from tests.drift import DRIFT, SPEC, noise_episodes

HORIZON, SAMPLER, ACTION_STD = 2, SamplerConfig(num_steps=12), 0.5
CONFIG = CodaConfig(
    horizon=HORIZON,
    batch_size=4,
    epochs_per_round=1,
    updates_per_epoch=1,
    num_rounds=24,
    num_trajectories=1024,
    chunk_size=3 * 1024,
    evaluation_episodes=0,
    reference_trajectories=16,
)
OBS, ACTIONS = transforms.obs_channels(SPEC), transforms.action_channels(SPEC)
AUTO = AdaptiveGuidance(target=0.2, start=0.02)


def slope(key) -> jax.Array:
    return jax.random.uniform(key, minval=0.3, maxval=1.2)


LINEAR = Learner(
    init=slope,
    update=lambda state, trajectory, weights, key: (state, {}),
    act=lambda state, obs, carry: (state * obs, carry),
    initial_carry=lambda batch_shape: (),
)
"""The policy mu(o) = k o, with k of the seed; it does not learn."""


def gaussian(guidance: float | AdaptiveGuidance, normalise: bool = False) -> Augmentation:
    """Samples of independent N(0, 1), and N(0, ACTION_STD^2) for actions, guided as `guided` does."""
    variance = jnp.ones(transforms.num_channels(SPEC)).at[ACTIONS].set(ACTION_STD**2)

    def denoise(tau, sigma):
        return tau * (variance / (variance + sigma**2))[None, None]

    def decode(denoised):
        action, obs = denoised[..., ACTIONS], denoised[..., OBS]
        return action[..., None], obs[..., None]  # one number an agent

    def draw(state, dataset, prior, guidance, key, num):
        del dataset, prior

        def log_prob(action, obs):
            return gaussian_log_prob(action, unroll(LINEAR, state, obs))

        guide = score_guide(log_prob, decode, ACTIONS, normalise=normalise)
        shape = (num, HORIZON, transforms.num_channels(SPEC))
        return transforms.unpack(sample(denoise, key, shape, SAMPLER, guide, guidance), SPEC)

    return Augmentation(draw, guidance=guidance)


def exact_spread(k: float, lambda_: float) -> float:
    """Algorithm 1 on (o, a) of one agent, whose every step is linear: the spread of a - k o, in float64."""
    sigma = np.asarray(karras_sigmas(SAMPLER.num_steps), np.float64)
    scales = lambda_ * np.asarray(guidance_schedule("annealed", SAMPLER.num_steps), np.float64)
    variance, guide = np.array([1.0, ACTION_STD**2]), np.array([[0.0, 0.0], [k, -1.0]])

    def denoiser(level):
        return np.diag(variance / (variance + level**2))

    tau = sigma[0] * np.eye(2)  # what the two normal numbers of the start are multiplied by
    for now, following, scale in zip(sigma[:-1], sigma[1:], scales, strict=True):
        denoised = denoiser(now) @ tau
        d = (tau - denoised) / now
        tau = tau + scale * guide @ denoised
        euler = tau + (following - now) * d
        if following > 0:
            d = (d + (euler - denoiser(following) @ euler) / following) / 2
        tau = tau + (following - now) * d
    return float(np.linalg.norm(tau[1] - k * tau[0]))


def search(spread, target: float, low: float, high: float) -> float:
    """Bisection for the lambda of a spread that falls from `low` to `high`."""
    assert spread(low) > target > spread(high)
    for _ in range(20):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if spread(middle) > target else (low, middle)
    return float(np.sqrt(low * high))


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(noise_episodes(SPEC, 4, 10), HORIZON)


def seeds(augmentation, config=CONFIG):
    mesh = jax.make_mesh((1,), ("seed",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    trainer = across_seeds(make_trainer(DRIFT, LINEAR, augmentation, config, seeds_per_device=3), mesh)
    return trainer, jax.jit(trainer.init)(jax.random.split(jax.random.key(0), 3))


def in_training(trainer, reports, name):
    """A metric of the rounds of updates, `[rounds, seeds]`."""
    return np.asarray(reports.metrics[name])[[r.kind == "train" for r in trainer.schedule]]


def test_lambda_reaches_the_spread_where_a_direct_search_finds_it_for_each_seed(dataset):
    trainer, state = seeds(gaussian(AUTO))
    slopes = np.asarray(state.learner)
    state, reports = jax.jit(trainer.run)(state, dataset, ())
    lambdas, spreads = (in_training(trainer, reports, name) for name in ("guidance", "action_spread"))
    np.testing.assert_allclose(lambdas[0], AUTO.start, rtol=1e-5)
    for row in (0, 1, -1):  # each spread is that of its lambda
        exact = [exact_spread(k, lambda_) for k, lambda_ in zip(slopes, lambdas[row], strict=True)]
        np.testing.assert_allclose(spreads[row], exact, rtol=0.05)
    np.testing.assert_allclose(spreads[-6:].mean(axis=0), AUTO.target, rtol=0.02)
    expected = [search(lambda scale, k=k: exact_spread(k, scale), AUTO.target, 1e-3, 0.15) for k in slopes]
    np.testing.assert_allclose(lambdas[-6:].mean(axis=0), expected, rtol=0.03)
    assert np.ptp(expected) > 0.1 * np.mean(expected)
    np.testing.assert_array_equal(state.guidance.scale, lambdas[-1])
    np.testing.assert_array_equal(state.guidance.spread, spreads[-1])
