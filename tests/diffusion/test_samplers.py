import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.augmentation.base import sample_in_chunks
from coda_jax.diffusion.edm import karras_sigmas
from coda_jax.diffusion.guidance import classifier_free, gaussian_log_prob, guidance_schedule, score_guide
from coda_jax.diffusion.samplers import SamplerConfig, heun_sample

ODE = SamplerConfig()
CHURN = SamplerConfig(S_churn=80.0, S_min=0.0, S_max=math.inf, S_noise=1.0)
ACTION = slice(2, 6)  # of the six channels of the nonlinear problem below: two observed, four acted on


def gaussian_denoiser(mu, sd):
    """E[x | x + sigma noise] for x ~ N(mu, sd^2): the ideal denoiser."""

    def denoise(tau, sigma):
        return (sd**2 * tau + sigma**2 * mu) / (sd**2 + sigma**2)

    return denoise


def nonlinear_denoiser(tau, sigma, tanh=jnp.tanh):
    """Mixes time steps and channels, and is as well scaled as a trained network."""
    tau_in = tau / (1.0 + sigma**2) ** 0.5
    mixing = np.sin(np.arange(36.0, dtype=np.float32)).reshape(6, 6)
    mixed = tanh(tau_in @ mixing + 0.3 * tau_in[:, ::-1])
    return tau / (1.0 + sigma**2) + 0.8 * sigma / (1.0 + sigma**2) ** 0.5 * mixed


def policy(obs, tanh=jnp.tanh):
    weights = np.cos(np.arange(8.0, dtype=np.float32)).reshape(2, 4)
    return tanh(obs @ weights)


def decode(z):
    return jnp.tanh(z[..., ACTION]), z[..., :2]


def log_prob(action, obs):
    return gaussian_log_prob(action, policy(obs))


GUIDE = score_guide(log_prob, decode, ACTION)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def sample_prior(key, denoise, shape, config):
    return heun_sample(denoise, key, shape, config)


@functools.partial(jax.jit, static_argnums=(1, 2))
def sample_guided(key, shape, config, lambda_):
    return heun_sample(nonlinear_denoiser, key, shape, config, GUIDE, lambda_)


def start(key, shape, config):
    """The sampler's own tau_0."""
    return config.sigma_max * jax.random.normal(jax.random.split(key)[0], shape)


def with_steps(num_steps, config=ODE):
    return dataclasses.replace(config, num_steps=num_steps)


# --- the distribution of Gaussian data ---


def std_of_samples(sd, config):
    """For Gaussian data each step of Alg. 1 is affine, so the variance of its samples is a product (float64)."""
    sigmas = np.asarray(karras_sigmas(config.num_steps), np.float64)
    variance = sigmas[0] ** 2
    for sigma, sigma_next in itertools.pairwise(sigmas):
        gamma = min(config.S_churn / config.num_steps, math.sqrt(2) - 1) if config.S_min <= sigma <= config.S_max else 0
        sigma_hat = sigma * (1 + gamma)
        variance = variance + (sigma_hat**2 - sigma**2) * config.S_noise**2
        slope, slope_next = sigma_hat / (sd**2 + sigma_hat**2), sigma_next / (sd**2 + sigma_next**2)
        factor = 1 + (sigma_next - sigma_hat) * slope
        if sigma_next > 0:
            factor = 1 + (sigma_next - sigma_hat) * (slope + slope_next * factor) / 2
        variance = variance * factor**2
    return math.sqrt(variance)


@pytest.mark.parametrize("churn", [ODE, CHURN], ids=["ode", "churn"])
@pytest.mark.parametrize("num_steps", [16, 64, 256])
def test_mean_and_spread_of_gaussian_data(num_steps, churn):
    config = with_steps(num_steps, churn)
    mu, sd = np.float32([0.0, 2.0, -1.0, 0.5]), np.float32([1.0, 0.3, 2.0, 0.1])
    denoise = gaussian_denoiser(mu[None, None], sd[None, None])
    samples = np.asarray(sample_prior(jax.random.key(num_steps), denoise, (5000, 2, 4), config))
    mean, std = samples.mean(axis=(0, 1)), samples.std(axis=(0, 1))
    predicted = np.array([std_of_samples(s, config) for s in sd.astype(float)])
    np.testing.assert_allclose(std, predicted, rtol=0.03)  # 4 standard errors
    # The start has no mean, and what is left of that is predicted / 80 of mu without churn, less with it.
    np.testing.assert_allclose((mean - mu) / predicted, 0.0, atol=0.04 + 2.0 / 80.0)
    # How far the discretised spread may be from the data's: second order, or with churn first.
    tolerance = 31.0 / num_steps**2 if config.S_churn == 0 else 3.7 / num_steps
    np.testing.assert_allclose(predicted / sd, 1.0, atol=tolerance)


def test_predictor_starts_from_the_churned_point():
    # From the un-churned point the spread would be 1.333 instead of 1.044.
    config = with_steps(32, CHURN)
    samples = sample_prior(jax.random.key(0), gaussian_denoiser(0.0, 1.0), (10_000, 2, 2), config)
    assert abs(float(samples.std()) - 1.044) < 0.02


def test_churn_happens_only_between_its_two_levels():
    key, shape = jax.random.key(0), (50, 2, 6)

    def change(S_min, S_max):
        config = SamplerConfig(num_steps=8, S_churn=40.0, S_min=S_min, S_max=S_max)
        churned, quiet = (
            sample_prior(jax.random.clone(key), nonlinear_denoiser, shape, c)
            for c in (config, SamplerConfig(num_steps=8))
        )
        return np.abs(churned - quiet).mean()

    assert change(90.0, 100.0) == 0.0
    assert 0.0 < change(0.0, 0.01) < 0.02  # only where sigma_n = 0.002: too little noise to be seen
    assert change(0.0, 100.0) > 0.2


# --- order of convergence ---


def test_second_order_convergence_to_the_exact_ode_solution():
    # tau(sigma) = mu + sqrt((sd^2 + sigma^2) / (sd^2 + sigma_0^2)) (tau_0 - mu)
    mu, sd, key, shape = 0.7, 0.5, jax.random.key(1), (64, 4, 3)
    denoise = gaussian_denoiser(mu, sd)
    tau_0 = np.asarray(start(jax.random.clone(key), shape, SamplerConfig()), np.float64)
    exact = mu + sd / math.sqrt(sd**2 + 80.0**2) * (tau_0 - mu)

    steps = np.array([16, 32, 64, 96])
    heun, euler = [], []
    for num_steps in steps:
        samples = sample_prior(jax.random.clone(key), denoise, shape, with_steps(int(num_steps)))
        heun.append(np.abs(samples - exact).mean())
        tau, sigmas = tau_0, np.asarray(karras_sigmas(int(num_steps)), np.float64)
        for sigma, sigma_next in itertools.pairwise(sigmas):
            tau = tau + (sigma_next - sigma) * (tau - denoise(tau, sigma)) / sigma
        euler.append(np.abs(tau - exact).mean())

    def order(errors):
        return -np.polyfit(np.log(steps), np.log(errors), 1)[0]

    assert 1.85 < order(heun) < 2.35
    assert order(euler) < 1.2  # the first-order solver would be told apart


# --- Algorithm 1, line by line ---


def algorithm_1(denoise, tau_0, noise, config, score, lambda_):
    """Algorithm 1 in float64 numpy, in the paper's order; `score` is l. 11-14."""
    N = config.num_steps
    i = np.arange(N)
    low, high = config.sigma_min ** (1 / config.rho), config.sigma_max ** (1 / config.rho)
    sigma = np.append((high + i / (N - 1) * (low - high)) ** config.rho, 0.0)
    lambdas = lambda_ * 128 / N * (1 - i / N + 0.3 * np.sin(np.pi * (i + 1) / N))
    lambdas[-1] = 0.0
    tau = tau_0
    for n in range(N):
        epsilon = config.S_noise * noise[n]
        gamma = min(config.S_churn / N, math.sqrt(2) - 1) if config.S_min <= sigma[n] <= config.S_max else 0.0
        sigma_hat = sigma[n] + gamma * sigma[n]
        tau_hat = tau + math.sqrt(sigma_hat**2 - sigma[n] ** 2) * epsilon
        denoised = denoise(tau_hat, sigma_hat)
        d = (tau_hat - denoised) / sigma_hat
        g = score(denoised)
        g = g / np.sqrt((g**2).sum(axis=(1, 2), keepdims=True))
        tau_hat[..., ACTION] += lambdas[n] * g
        tau = tau_hat + (sigma[n + 1] - sigma_hat) * d
        if sigma[n + 1] != 0:
            d_next = (tau - denoise(tau, sigma[n + 1])) / sigma[n + 1]
            tau = tau_hat + (sigma[n + 1] - sigma_hat) * (d / 2 + d_next / 2)
    return tau


@pytest.mark.parametrize("churn", [0.0, 10.0])
@pytest.mark.parametrize("lambda_", [0.0, 0.6])
def test_equals_algorithm_1_line_by_line(churn, lambda_):
    config = SamplerConfig(num_steps=20, S_churn=churn)
    key, shape = jax.random.key(2), (7, 5, 6)
    key_start, key_churn = jax.random.split(jax.random.clone(key))
    tau_0 = config.sigma_max * np.asarray(jax.random.normal(key_start, shape), np.float64)
    noise = np.asarray([jax.random.normal(jax.random.fold_in(key_churn, n), shape) for n in range(20)], np.float64)

    def score(denoised):
        return policy(denoised[..., :2], np.tanh) - np.tanh(denoised[..., ACTION])

    expected = algorithm_1(functools.partial(nonlinear_denoiser, tanh=np.tanh), tau_0, noise, config, score, lambda_)
    sampled = sample_guided(key, shape, config, lambda_)
    np.testing.assert_allclose(sampled, expected, rtol=2e-3, atol=2e-3)
    assert np.abs(expected).max() > 0.5  # nothing trivial


def test_network_is_called_2n_minus_1_times_and_never_at_zero():
    num_steps, sigmas, guided = 5, [], []

    def denoise(tau, sigma):
        sigmas.append(float(sigma))
        return tau / (1.0 + sigma**2)

    def guide(denoised):
        guided.append(denoised)
        return jnp.ones_like(denoised)

    with jax.disable_jit():  # so that the scan is a Python loop
        heun_sample(denoise, jax.random.key(0), (2, 3, 6), SamplerConfig(num_steps=num_steps), guide, 0.6)
    assert len(sigmas) == 2 * num_steps - 1 and len(guided) == num_steps
    assert min(sigmas) == pytest.approx(0.002, rel=1e-4)


# --- guidance ---


@pytest.mark.parametrize("churn", [0.0, 40.0])
def test_guidance_zero_is_the_unguided_sample_bit_for_bit(churn):
    config, key, shape = SamplerConfig(num_steps=16, S_churn=churn), jax.random.key(3), (9, 5, 6)
    unguided = sample_prior(jax.random.clone(key), nonlinear_denoiser, shape, config)
    guided = sample_guided(key, shape, config, 0.0)
    np.testing.assert_array_equal(np.asarray(guided).view(np.uint32), np.asarray(unguided).view(np.uint32))


def test_samples_are_continuous_in_the_guidance_scale():
    config, key, shape = SamplerConfig(num_steps=32), jax.random.key(4), (64, 5, 6)
    scales = np.float32([0.0, 1e-4, 1e-3, 1e-2])
    sweep = jax.vmap(sample_guided, in_axes=(None, None, None, 0))  # the scale is traced
    samples = np.asarray(sweep(key, shape, config, scales), np.float64)
    rate = np.abs(samples[1:] - samples[0]).mean(axis=(1, 2, 3)) / scales[1:]
    np.testing.assert_allclose(rate / rate[0], 1.0, rtol=0.1)  # linear in lambda: no jump at zero
    # A thousandth of guidance moves the log-likelihood by a fraction of a nat.
    action, obs = decode(jnp.asarray(samples, jnp.float32))
    log_likelihood = jax.vmap(log_prob)(action, obs).mean(axis=1)
    assert 0.0 < log_likelihood[2] - log_likelihood[0] < 0.4


def test_constant_direction_shifts_the_mean_by_the_known_amount():
    # Each push of lambda_n is carried down by the ODE, sd / sqrt(sd^2 + sigma^2) of it arrive. As d is taken before
    # guidance (Alg. 1, l. 9), a push contracts for the second half of its own step only: sigma is the step's middle.
    sd, scale = np.float32([1.0, 0.3, 0.1]), 0.25
    denoise = gaussian_denoiser(0.0, sd[None, None])
    shifts = {}
    for num_steps in (32, 64, 128):
        config, key, shape = with_steps(num_steps), jax.random.key(5), (4, 2, 3)
        prior = sample_prior(jax.random.clone(key), denoise, shape, config)
        pushed = jax.jit(lambda key, s, c=config: heun_sample(denoise, key, (4, 2, 3), c, jnp.ones_like, s))(key, scale)
        np.testing.assert_allclose(pushed - prior, (pushed - prior)[:1, :1].repeat(4, 0).repeat(2, 1), rtol=1e-4)
        shifts[num_steps] = np.asarray((pushed - prior)[0, 0]) / scale
        sigmas = np.asarray(karras_sigmas(num_steps))
        lambdas, middle = guidance_schedule("annealed", num_steps), (sigmas[:-1] + sigmas[1:])[:, None] / 2
        arrived = np.asarray(lambdas)[:, None] * sd / np.sqrt(sd**2 + middle**2)
        np.testing.assert_allclose(shifts[num_steps], arrived.sum(axis=0), rtol=0.006)
    np.testing.assert_allclose(shifts[128], [28.0, 17.1, 10.2], rtol=0.025)  # in the limit of short steps
    # 128/N keeps the meaning of lambda, up to the half step.
    np.testing.assert_allclose(shifts[64] / shifts[128], 1.0, atol=0.035)
    np.testing.assert_allclose(shifts[32] / shifts[128], 1.0, atol=0.09)


@pytest.mark.parametrize("through_denoiser", [False, True])
def test_consequences_follow_an_action_better_through_the_denoiser(through_denoiser):
    """Gaussian data in which a consequence goes with the action, 0.8 of it; the guide pushes the action.

    All maps are functions of the covariance, so that the shift of the two has a closed form. At a correlation of 0.8
    the action, pushed alone, leaves three quarters of its consequence behind; through the denoiser most of it follows.
    The nearer the correlation to 1, the more follows either way.
    """
    covariance = np.array([[1.0, 0.8], [0.8, 1.0]])
    config = SamplerConfig(num_steps=128, through_denoiser=through_denoiser)
    values, basis = np.linalg.eigh(covariance)

    def of(function):
        return (basis * function(values)) @ basis.T

    def denoise(tau, sigma):
        shrink = jnp.asarray(values) / (jnp.asarray(values) + sigma**2)
        return tau @ ((jnp.asarray(basis) * shrink[None]) @ jnp.asarray(basis).T).astype(tau.dtype)

    push = jnp.array([1.0, 0.0]).reshape(1, 1, 2)
    shape, key = (4, 1, 2), jax.random.key(0)
    pushed = heun_sample(denoise, key, shape, config, lambda x: jnp.broadcast_to(push, x.shape), 0.05)
    shift = np.asarray(pushed - heun_sample(denoise, jax.random.clone(key), shape, config))[0, 0]
    sigmas, scales = np.asarray(karras_sigmas(128), np.float64), np.asarray(guidance_schedule("annealed", 128))
    expected = np.zeros(2)
    for sigma, following, scale in zip(sigmas[:-1], sigmas[1:], scales, strict=True):
        middle = (sigma + following) / 2  # of an Euler step that moves by (sigma' - sigma) d
        direction = np.array([1.0, 0.0])
        if through_denoiser:
            direction = of(lambda v, s=sigma: v / (v + s**2))[0]
            direction /= np.linalg.norm(direction)
        expected += 0.05 * scale * of(lambda v, s=middle: np.sqrt(v / (v + s**2))) @ direction
    np.testing.assert_allclose(shift, expected, rtol=0.03)
    response = shift[1] / (0.8 * shift[0])
    assert response > 0.55 if through_denoiser else response < 0.3


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("num_steps", [32, 128])
def test_last_step_of_a_constant_schedule_is_the_update_of_appendix_b(num_steps, normalise):
    # Data that are a single point: whatever came before, the sample is D + lambda_{N-1} g(D).
    point = np.float32([0.2, -0.4, 0.9, -0.8, 0.1, 0.6])
    mu = policy(point[:2], np.tanh)
    d = np.linalg.norm(np.tile(mu - point[ACTION], 3))
    config = SamplerConfig(num_steps=num_steps, guidance_schedule="constant")
    z = jnp.broadcast_to(point, (2, 3, 6))
    guide = score_guide(log_prob, lambda z: (z[..., ACTION], z[..., :2]), ACTION, normalise=normalise)

    scales = np.float32([0.0, 0.3, 0.9, 1.6, 2.5])
    sample = jax.vmap(lambda s: heun_sample(lambda tau, sigma: z, jax.random.key(6), z.shape, config, guide, s))
    samples = np.asarray(jax.jit(sample)(scales * num_steps / 128))
    distance = np.linalg.norm((samples[..., ACTION] - mu).reshape(5, 2, -1), axis=-1)
    expected = np.abs(d - scales) if normalise else np.abs(1.0 - scales) * d
    np.testing.assert_allclose(distance, np.stack([expected, expected], axis=1), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(samples[..., :2], np.broadcast_to(point[:2], (5, 2, 3, 2)), atol=1e-4)


def test_guidance_draws_actions_towards_the_policy_and_leaves_independent_channels_alone():
    key, config = jax.random.key(7), SamplerConfig(num_steps=32)

    @jax.jit
    def sample(scale):
        return heun_sample(gaussian_denoiser(0.0, 1.0), jax.random.clone(key), (256, 5, 6), config, GUIDE, scale)

    prior, steered = sample(0.0), sample(0.6)
    np.testing.assert_array_equal(steered[..., :2], prior[..., :2])
    gain = (log_prob(*decode(steered)) - log_prob(*decode(prior))).mean()
    assert gain > 1.0


def test_classifier_free_guidance_shifts_the_conditional_mean():
    # Both scores linear with the same spread: Eq. 3 is the score of N((1 + w) m_y - w m, sd^2) at every noise level.
    w, sd, mean, mean_given_y = 1.5, 0.4, -0.2, 0.6
    denoise = classifier_free(gaussian_denoiser(mean_given_y, sd), gaussian_denoiser(mean, sd), w)
    samples = sample_prior(jax.random.key(8), denoise, (4000, 2, 2), SamplerConfig(num_steps=64))
    combined_mean = ((1 + w) * mean_given_y - w * mean) * (1 - sd / 80.0)  # the start, of std 80, has no mean
    assert float(samples.mean()) == pytest.approx(combined_mean, abs=4 * sd / math.sqrt(16_000))
    assert float(samples.std()) == pytest.approx(sd, rel=0.03)


# --- chunks and seeds ---


@pytest.mark.parametrize(("num_samples", "chunk_size", "chunks"), [(10, 4, [4, 4, 4]), (3, 8, [3])])
def test_chunks_are_the_samples_of_each_chunk_alone(num_samples, chunk_size, chunks):
    config, key = SamplerConfig(num_steps=6, S_churn=4.0), jax.random.key(9)

    def sample(key, size):
        return sample_guided(key, (size, 5, 6), config, 0.6)

    chunked = jax.jit(lambda key: sample_in_chunks(sample, key, num_samples, chunk_size))(jax.random.clone(key))
    alone = [sample(k, size) for k, size in zip(jax.random.split(key, len(chunks)), chunks, strict=True)]
    np.testing.assert_allclose(chunked, np.concatenate(alone)[:num_samples], rtol=1e-4, atol=1e-4)


def test_vmapped_seeds_with_their_own_guides_equal_each_seed_alone():
    config = SamplerConfig(num_steps=6, S_churn=4.0)

    def sample_seed(key, weights):
        guide = score_guide(lambda a, o: gaussian_log_prob(a, jnp.tanh(o @ weights)), decode, ACTION)

        def sample(key, size):
            return heun_sample(nonlinear_denoiser, key, (size, 5, 6), config, guide, 0.6)

        return sample_in_chunks(sample, key, num_samples=7, chunk_size=4)

    key_seeds, key_weights = jax.random.split(jax.random.key(10))
    keys, weights = jax.random.split(key_seeds, 3), jax.random.normal(key_weights, (3, 2, 4))
    together = jax.jit(jax.vmap(sample_seed))(jax.random.clone(keys), weights)
    sample_alone = jax.jit(sample_seed)
    alone = jnp.stack([sample_alone(keys[i], weights[i]) for i in range(3)])
    assert together.shape == (3, 7, 5, 6)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="num_steps"):
        SamplerConfig(num_steps=1)
