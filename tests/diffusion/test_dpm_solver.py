import functools
import itertools
import math

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.diffusion.edm import karras_sigmas
from coda_jax.diffusion.guidance import guidance_schedule
from coda_jax.diffusion.samplers import SamplerConfig, sample
from tests.diffusion.test_samplers import (
    ACTION,
    GUIDE,
    decode,
    gaussian_denoiser,
    log_prob,
    nonlinear_denoiser,
    policy,
    start,
)


def dpm(num_steps, **settings):
    return SamplerConfig(num_steps=num_steps, solver="dpm++", **settings)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def sample_prior(key, denoise, shape, config):
    return sample(denoise, key, shape, config)


@functools.partial(jax.jit, static_argnums=(1, 2, 4))
def sample_guided(key, shape, config, lambda_, guide=GUIDE):
    return sample(nonlinear_denoiser, key, shape, config, guide, lambda_)


# --- accuracy without guidance ---


def test_second_order_convergence_to_the_exact_ode_solution():
    # tau(sigma) = mu + sqrt((sd^2 + sigma^2) / (sd^2 + sigma_0^2)) (tau_0 - mu)
    mu, sd, key, shape = 0.7, 0.5, jax.random.key(1), (64, 4, 3)
    tau_0 = np.asarray(start(jax.random.clone(key), shape, SamplerConfig()), np.float64)
    exact = mu + sd / math.sqrt(sd**2 + 80.0**2) * (tau_0 - mu)
    steps, errors, first_order = np.array([16, 32, 64, 128]), [], []
    for num_steps in steps:
        samples = sample_prior(jax.random.clone(key), gaussian_denoiser(mu, sd), shape, dpm(int(num_steps)))
        errors.append(np.abs(samples - exact).mean())
        tau = tau_0  # DDIM: the same solver without history
        for sigma, following in itertools.pairwise(np.asarray(karras_sigmas(int(num_steps)), np.float64)):
            tau = tau * following / sigma + (1 - following / sigma) * gaussian_denoiser(mu, sd)(tau, sigma)
        first_order.append(np.abs(tau - exact).mean())

    def order(errors):
        return -np.polyfit(np.log(steps), np.log(errors), 1)[0]

    assert 1.9 < order(errors) < 2.35
    assert order(first_order) < 1.2


def test_second_order_convergence_on_a_mixture():
    means, sd, key, shape = np.float32([-1.2, 0.3, 1.5]), 0.25, jax.random.key(2), (64, 4, 3)

    def denoise(tau, sigma):
        variance = sd**2 + sigma**2
        away = tau[..., None] - means[None, None, None]
        weights = jax.nn.softmax(-0.5 * away**2 / variance, axis=-1)
        return (weights * (tau[..., None] - sigma**2 / variance * away)).sum(axis=-1)

    exact = sample_prior(jax.random.clone(key), denoise, shape, SamplerConfig(num_steps=512))
    steps = [16, 32, 64, 128]
    errors = [np.abs(sample_prior(jax.random.clone(key), denoise, shape, dpm(n)) - exact).mean() for n in steps]
    assert 1.9 < -np.polyfit(np.log(steps), np.log(errors), 1)[0] < 2.35


def test_agrees_with_heun_on_the_same_noise():
    key, shape = jax.random.key(3), (32, 5, 6)
    for scale in (0.0, 0.2):
        heun, few, many = (
            sample_guided(jax.random.clone(key), shape, config, scale)
            for config in (SamplerConfig(num_steps=512), dpm(64), dpm(512))
        )
        assert np.abs(few - heun).mean() < 0.008
        assert np.abs(many - heun).mean() < 0.004


# --- guidance ---


def two_step_solver(denoise, tau, config, score, lambda_):
    """DPM-Solver++(2M) in float64 numpy with guidance in the denoised estimate; `score` is the unnormalised guide."""
    N, rho = config.num_steps, config.rho
    i = np.arange(N)
    high, low = config.sigma_max ** (1 / rho), config.sigma_min ** (1 / rho)
    sigma = (high + i / (N - 1) * (low - high)) ** rho
    lambdas = lambda_ * 128 / N * (1 - i / N + 0.3 * np.sin(np.pi * (i + 1) / N))
    t = -np.log(sigma)
    dt = rho * (high - low) / (N - 1) * sigma ** (-1 / rho)
    history = []
    for n in range(N - 1):
        denoised = denoise(tau, sigma[n])
        g = score(denoised)
        denoised[..., ACTION] += lambdas[n] / dt[n] * g / np.sqrt((g**2).sum(axis=(1, 2), keepdims=True))
        history.append(denoised)
        h = t[n + 1] - t[n]
        middle = denoised
        if n > 0:
            middle = denoised + 0.5 * h * (denoised - history[-2]) / (t[n] - t[n - 1])
        tau = math.exp(-h) * tau + (1 - math.exp(-h)) * middle
    return denoise(tau, sigma[-1])


@pytest.mark.parametrize("lambda_", [0.0, 0.6])
def test_equals_the_solver_written_out_in_float64(lambda_):
    config, key, shape = dpm(12), jax.random.key(2), (7, 5, 6)
    tau_0 = np.asarray(start(jax.random.clone(key), shape, config), np.float64)

    def score(denoised):
        return policy(denoised[..., :2], np.tanh) - np.tanh(denoised[..., ACTION])

    expected = two_step_solver(functools.partial(nonlinear_denoiser, tanh=np.tanh), tau_0, config, score, lambda_)
    np.testing.assert_allclose(sample_guided(key, shape, config, lambda_), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("num_steps", "tolerance"), [(12, 0.07), (16, 0.03), (32, 0.03), (64, 0.02)])
def test_lambda_means_the_strength_of_heun_at_128_steps(num_steps, tolerance):
    # Gaussian data, constant direction: sd / sqrt(sd^2 + sigma^2) of a push arrives, sigma the middle of Heun's step.
    sd, scale, key, shape = np.float32([1.0, 0.3, 0.1]), 0.25, jax.random.key(5), (4, 2, 3)
    denoise, config = gaussian_denoiser(0.0, sd[None, None]), dpm(num_steps)
    prior = sample_prior(jax.random.clone(key), denoise, shape, config)
    pushed = jax.jit(lambda key: sample(denoise, key, shape, config, jnp.ones_like, scale))(key)
    sigmas, lambdas = np.asarray(karras_sigmas(128), np.float64), np.asarray(guidance_schedule("annealed", 128))
    middle = (sigmas[:-1] + sigmas[1:])[:, None] / 2
    heun_128 = (lambdas[:, None] * sd / np.sqrt(sd**2 + middle**2)).sum(axis=0)
    np.testing.assert_allclose((pushed - prior)[0, 0] / scale, heun_128, rtol=tolerance)


def test_last_step_of_a_constant_schedule_adds_lambda_as_it_is():
    # Data that are a single point: the sample is D + lambda_{N-1} g, as with Algorithm 1.
    point = jnp.broadcast_to(jnp.array([0.2, -0.4, 0.9]), (2, 3, 3))
    config = dpm(32, guidance_schedule="constant")
    pushed = sample(lambda tau, sigma: point, jax.random.key(6), point.shape, config, jnp.ones_like, 0.1)
    np.testing.assert_allclose(pushed, point + 0.1 * 128 / 32, rtol=1e-5)


@pytest.mark.parametrize("through_denoiser", [False, True])
def test_zero_guidance_is_the_unguided_sample_and_evaluates_no_guide(through_denoiser):
    config, key, shape = dpm(8, through_denoiser=through_denoiser), jax.random.key(3), (9, 5, 6)

    def no_number(denoised):
        return jnp.full_like(denoised, jnp.nan)

    unguided = sample_prior(jax.random.clone(key), nonlinear_denoiser, shape, config)
    evaluated = [sample_guided(jax.random.clone(key), shape, config, scale, no_number) for scale in (0.0, 1e-3)]
    np.testing.assert_allclose(evaluated[0], unguided, rtol=1e-5, atol=1e-5)
    assert np.isnan(evaluated[1]).all()
    # Also for seeds in a batch, with a shared scale.
    keys = jax.random.split(key, 2)
    seeds = jax.vmap(sample_guided, in_axes=(0, None, None, None, None))(keys, shape, config, 0.0, no_number)
    assert np.isfinite(seeds).all()


def test_one_denoiser_call_a_step_and_never_at_zero():
    sigmas, guided = [], []

    def denoise(tau, sigma):
        sigmas.append(float(sigma))
        return tau / (1.0 + sigma**2)

    def guide(denoised):
        guided.append(denoised)
        return jnp.ones_like(denoised)

    with jax.disable_jit():  # so that the scan is a Python loop
        sample(denoise, jax.random.key(0), (2, 3, 6), dpm(5), guide, 0.6)
        assert len(sigmas) == len(guided) == 5
        sample(denoise, jax.random.key(0), (2, 3, 6), dpm(5), guide, 0.0)
    assert len(sigmas) == 10 and len(guided) == 5
    assert min(sigmas) == pytest.approx(0.002, rel=1e-4)


@pytest.mark.parametrize("through_denoiser", [False, True])
def test_consequences_follow_an_action_as_with_heun(through_denoiser):
    """Gaussian data with a correlation of 0.8; the guide pushes the first of the two channels."""
    covariance = jnp.array([[1.0, 0.8], [0.8, 1.0]])
    push = jnp.array([1.0, 0.0]).reshape(1, 1, 2)
    key, shape = jax.random.key(0), (4, 1, 2)

    def denoise(tau, sigma):
        return tau @ jnp.linalg.solve(covariance + sigma**2 * jnp.eye(2), covariance)

    def shift(**settings):
        config = SamplerConfig(through_denoiser=through_denoiser, **settings)
        moved, still = (
            sample(denoise, jax.random.clone(key), shape, config, lambda x: jnp.broadcast_to(push, x.shape), scale)
            for scale in (0.05, 0.0)
        )
        return np.asarray(moved - still)[0, 0]

    np.testing.assert_allclose(shift(num_steps=16, solver="dpm++"), shift(num_steps=128), rtol=0.06)


def test_guidance_draws_actions_towards_the_policy_as_heun_does():
    key, shape = jax.random.key(7), (256, 5, 6)

    @functools.partial(jax.jit, static_argnums=0)
    def likelihood(config, scale):
        z = sample(gaussian_denoiser(0.0, 1.0), jax.random.clone(key), shape, config, GUIDE, scale)
        return log_prob(*decode(z)).mean()

    for scale in (0.1, 0.3):
        gains = [likelihood(c, scale) - likelihood(c, 0.0) for c in (SamplerConfig(), dpm(16))]
        assert gains[1] == pytest.approx(float(gains[0]), rel=0.1)
        assert gains[1] > 0.5


# --- programs and settings ---


@pytest.mark.parametrize("through_denoiser", [False, True])
def test_lowers_for_accelerators(through_denoiser):
    config = dpm(8, through_denoiser=through_denoiser)
    program = jax.jit(lambda key, scale: sample(nonlinear_denoiser, key, (4, 5, 6), config, GUIDE, scale))
    arguments = (jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.float32))
    exported = jax.export.export(program, platforms=("cuda", "tpu"))(*arguments)
    assert exported.platforms == ("cuda", "tpu")


def test_churn_is_refused():
    with pytest.raises(ValueError, match="must be 0 with the solver"):
        dpm(8, S_churn=1.0)
