"""EDM against closed forms: the optimal denoiser of Gaussian data and its loss are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from coda_jax.diffusion import edm
from coda_jax.ranges import RangeError

NOISE = edm.NoiseConfig()


def ideal_network(data_std, sigma_data):
    """The F that makes D the posterior mean of data ~ N(0, data_std^2): F is linear in x_in at every level."""

    def network(x_in, c_noise, condition):
        sigma = jnp.exp(4 * c_noise)
        tau = x_in * jnp.sqrt(sigma**2 + sigma_data**2)
        posterior_mean = data_std**2 / (data_std**2 + sigma**2) * tau
        skipped = sigma_data**2 / (sigma**2 + sigma_data**2) * tau
        return (posterior_mean - skipped) * jnp.sqrt(sigma**2 + sigma_data**2) / (sigma * sigma_data)

    return network


def least_loss(data_std, sigma_data, weight):
    """E[w(sigma) * posterior variance], by Gauss-Hermite quadrature over ln sigma (clipping included)."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(80)
    sigma = np.clip(np.exp(NOISE.log_mean + NOISE.log_std * nodes), NOISE.sigma_min, NOISE.sigma_max)
    w = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2 if weight == "edm" else np.ones_like(sigma)
    return np.sum(masses * w * data_std**2 * sigma**2 / (data_std**2 + sigma**2)) / np.sum(masses)


def test_karras_sigmas_follow_the_formula():
    sigmas = np.asarray(edm.karras_sigmas(5, 0.01, 10.0, 3.0))
    expected = [(10 ** (1 / 3) + i / 4 * (0.01 ** (1 / 3) - 10 ** (1 / 3))) ** 3 for i in range(5)]
    np.testing.assert_allclose(sigmas[:-1], expected, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [2, 16, 40, 128])
def test_karras_sigmas_decrease_from_the_top_to_zero(num_steps):
    sigmas = np.asarray(edm.karras_sigmas(num_steps))
    assert sigmas.shape == (num_steps + 1,)
    np.testing.assert_allclose(sigmas[[0, -2, -1]], [80.0, 0.002, 0.0], rtol=1e-5)
    assert np.all(np.diff(sigmas) < 0)


@pytest.mark.parametrize(
    ("num_steps", "sigma_min", "sigma_max", "rho"),
    [
        *((128, 0.002, 80.0, rho) for rho in (0.5, 1e6)),  # the lowest level is NaN; 128 levels are not distinct
        (2, 0.002, 80.0, 1e6),  # the first level is 82
        (128, 79.99999, 80.0, 7.0),
        (128, 0.002, 1e38, 7.0),
    ],
)
def test_levels_that_single_precision_cannot_separate_are_refused(num_steps, sigma_min, sigma_max, rho):
    with pytest.raises(RangeError, match=f"sigma_min is {sigma_min}; {num_steps} noise levels must decrease to it"):
        edm.check_levels(num_steps, sigma_min, sigma_max, rho)
    for steps in (2, 128, 100_000):
        edm.check_levels(steps, 0.002, 80.0, 7.0)


def test_training_sigmas_are_log_normal_within_their_range():
    log_sigma = np.log(edm.training_sigmas(jax.random.key(0), (20_000,)))
    # A frozen distribution: from a name and `args`, scipy 1.18 calls the CDF of the standard normal with `args`.
    assert stats.kstest(log_sigma, stats.norm(-1.2, 1.2).cdf).pvalue > 0.01
    for other in (stats.norm(-1.15, 1.2), stats.norm(-1.2, 1.3)):  # the test has the power to reject these
        assert stats.kstest(log_sigma, other.cdf).pvalue < 0.01
    np.testing.assert_allclose([log_sigma.mean(), log_sigma.std()], [-1.2, 1.2], atol=0.03)

    narrow = edm.NoiseConfig(sigma_min=0.2, sigma_max=0.5)
    clipped = np.asarray(edm.training_sigmas(jax.random.key(0), (20_000,), narrow))
    assert clipped.min() == np.float32(0.2) and clipped.max() == np.float32(0.5)
    below = stats.norm.cdf((np.log(0.2) + 1.2) / 1.2)
    np.testing.assert_allclose(np.mean(clipped == np.float32(0.2)), below, atol=0.015)


@given(sigma=st.floats(0.002, 80.0), sigma_data=st.floats(0.3, 3.0))
def test_preconditioning_coefficients(sigma, sigma_data):
    tau = jnp.array([[[1.5, -2.0]]])
    recorded = {}

    def network(x_in, c_noise, condition):
        recorded.update(x_in=x_in, c_noise=c_noise)
        return jnp.zeros_like(x_in) if condition is None else jnp.ones_like(x_in)

    denoise = edm.precondition(network, sigma_data)
    skipped = denoise(tau, sigma)
    c_out = denoise(tau, sigma, jnp.zeros((1, 1))) - skipped
    total = sigma**2 + sigma_data**2
    np.testing.assert_allclose(skipped, tau * sigma_data**2 / total, rtol=1e-4)
    np.testing.assert_allclose(c_out, sigma * sigma_data / np.sqrt(total), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(recorded["x_in"], tau / np.sqrt(total), rtol=1e-5)
    np.testing.assert_allclose(recorded["c_noise"], np.log(sigma) / 4, rtol=1e-4, atol=1e-6)


def test_input_and_target_of_the_network_have_unit_variance():
    sigma_data = 1.814
    key_data, key_noise = jax.random.split(jax.random.key(1))
    z0 = sigma_data * jax.random.normal(key_data, (4000, 1, 3))
    noise = jax.random.normal(key_noise, z0.shape)
    for sigma in (0.02, 0.5, 20.0):
        tau = z0 + sigma * noise
        total = sigma**2 + sigma_data**2
        target = (z0 - sigma_data**2 / total * tau) * np.sqrt(total) / (sigma * sigma_data)
        np.testing.assert_allclose([np.std(tau / np.sqrt(total)), np.std(target)], 1.0, atol=0.02)
        # The same for the loss: under the EDM weight, the loss of a zero network is the variance of the target.
        weighted = edm.loss_weight(jnp.array(sigma), sigma_data, "edm") * jnp.mean(
            (edm.precondition(lambda x, c, y: jnp.zeros_like(x), sigma_data)(tau, sigma) - z0) ** 2
        )
        np.testing.assert_allclose(weighted, 1.0, atol=0.04)


@given(
    data_std=st.floats(0.3, 3.0),
    sigma_data=st.sampled_from([0.5, 1.0, 1.814]),
    batch=st.sampled_from([(), (3,), (2, 3)]),
)
def test_ideal_network_gives_the_posterior_mean(data_std, sigma_data, batch):
    key_tau, key_sigma = jax.random.split(jax.random.key(2))
    tau = jax.random.normal(key_tau, (*batch, 4, 2))
    sigma = edm.training_sigmas(key_sigma, batch)
    expected = data_std**2 / (sigma**2 + data_std**2)
    denoise = edm.precondition(ideal_network(data_std, sigma_data), sigma_data)
    np.testing.assert_allclose(denoise(tau, sigma), expected[..., None, None] * tau, rtol=1e-3, atol=1e-5)


def test_scalar_sigma_equals_the_same_sigma_for_each_trajectory():
    tau = jax.random.normal(jax.random.key(3), (2, 5, 4, 3))
    denoise = edm.precondition(ideal_network(0.7, 1.0), 1.0)
    np.testing.assert_allclose(denoise(tau, 0.3), denoise(tau, jnp.full((2, 5), 0.3)), rtol=1e-6)


@pytest.mark.parametrize("weight", ["edm", "plain"])
@pytest.mark.parametrize("data_std", [1.0, 0.6])
def test_ideal_denoiser_attains_the_least_loss_and_others_exceed_it(weight, data_std):
    key_data, key_loss = jax.random.split(jax.random.key(4))
    z0 = data_std * jax.random.normal(key_data, (60_000, 2, 3))
    evaluate = functools.partial(edm.loss, z0=z0, weight=weight)
    ideal = edm.precondition(ideal_network(data_std, 1.0), 1.0)
    best = evaluate(ideal, key=key_loss)
    np.testing.assert_allclose(best, least_loss(data_std, 1.0, weight), rtol=0.015)
    for wrong_std in (0.8 * data_std, 1.25 * data_std):
        other = edm.precondition(ideal_network(wrong_std, 1.0), 1.0)
        assert evaluate(other, key=jax.random.clone(key_loss)) > best * 1.002


def test_least_edm_loss_of_matched_data_is_one():
    np.testing.assert_allclose(least_loss(1.0, 1.0, "edm"), 1.0, rtol=1e-6)
    np.testing.assert_allclose(least_loss(1.8, 1.8, "edm"), 1.0, rtol=1e-6)
