"""Known entries of a sample, on linear dynamics x' = 0.9 x + 0.4 u + 0.1 noise with actions u = 0.3 x + 0.6 noise."""

import functools
import itertools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.diffusion.edm import karras_sigmas
from coda_jax.diffusion.samplers import Known, SamplerConfig, sample
from tests.diffusion.test_samplers import GUIDE, nonlinear_denoiser

H, C = 6, 2
NOISE = 0.1
HEUN, DPM = SamplerConfig(num_steps=32), SamplerConfig(num_steps=16, solver="dpm++")
SOLVERS = pytest.mark.parametrize("config", [HEUN, DPM], ids=["heun", "dpm++"])


def standardised_trajectories():
    """Covariance of the trajectories, flattened and with unit variances, and the standard deviations [H, C]."""
    of_noise = np.zeros((H, C, 1 + 2 * H))  # a trajectory is linear in its noise
    x = np.zeros(1 + 2 * H)
    x[0] = 1.0
    for t in range(H):
        u = 0.3 * x
        u[1 + 2 * t] += 0.6
        of_noise[t] = x, u
        x = 0.9 * x + 0.4 * u
        x[2 + 2 * t] += NOISE
    of_noise = of_noise.reshape(H * C, -1)
    covariance = of_noise @ of_noise.T
    std = np.sqrt(np.diag(covariance))
    return covariance / np.outer(std, std), std.reshape(H, C)


COVARIANCE, STD = standardised_trajectories()
START = np.zeros((1, H, C), bool)
START[:, 0, 0] = True


def denoise(tau, sigma):
    """The ideal denoiser of these trajectories."""
    matrix = jnp.asarray(COVARIANCE, jnp.float32)
    gain = jnp.linalg.solve(matrix + sigma**2 * jnp.eye(H * C), matrix)
    return (tau.reshape(-1, H * C) @ gain).reshape(tau.shape)


def guide(denoised):
    """Toward the actions u = 0.3 x + 1.2, two standard deviations above the data's, at unit length."""
    x = denoised * STD[None]
    g = jnp.zeros_like(denoised).at[..., 1].set(0.3 * x[..., 0] + 1.2 - x[..., 1])
    return g / jnp.sqrt((g**2).sum(axis=(1, 2), keepdims=True))


def recorded(num):
    values = np.random.default_rng(0).multivariate_normal(np.zeros(H * C), COVARIANCE, num)
    return Known(jnp.asarray(values.reshape(num, H, C), jnp.float32), jnp.asarray(START))


@functools.partial(jax.jit, static_argnums=1)
def draw(known, config, scale=0.0):
    return sample(denoise, jax.random.key(0), (4000, H, C), config, guide, scale, known)


def first_miss(z):
    """Root mean square of x_1 - 0.9 x_0 - 0.4 u_0, in units of the dynamics' noise."""
    x, u = np.moveaxis(np.asarray(z, np.float64) * STD, -1, 0)
    return np.sqrt(np.mean((x[:, 1] - 0.9 * x[:, 0] - 0.4 * u[:, 0]) ** 2)) / NOISE


# --- what holds with any denoiser ---


@pytest.mark.parametrize("conditioning", ["replace", "regress"])
@pytest.mark.parametrize("through_denoiser", [False, True])
@pytest.mark.parametrize(("solver", "churn"), [("heun", 0.0), ("heun", 10.0), ("dpm++", 0.0)])
def test_known_entries_keep_their_values_and_the_others_are_sampled(solver, churn, through_denoiser, conditioning):
    config = SamplerConfig(
        num_steps=8,
        solver=solver,
        S_churn=churn,
        through_denoiser=through_denoiser,
        known_conditioning=conditioning,
        guidance_schedule="constant",  # guidance on the last step, too
    )
    key_values, key_mask, key = jax.random.split(jax.random.key(1), 3)
    shape = (7, 5, 6)
    mask = jax.random.bernoulli(key_mask, 0.4, shape)
    known = Known(jnp.where(mask, jax.random.normal(key_values, shape), jnp.nan), mask)  # unknown values are not read
    z = jax.jit(lambda key: sample(nonlinear_denoiser, key, shape, config, GUIDE, 0.6, known))(key)
    np.testing.assert_allclose(z[mask], known.values[mask], rtol=1e-5, atol=1e-6)
    assert np.isfinite(z).all()
    assert z[~mask].std() > 0.3


@SOLVERS
def test_guide_sees_the_known_values_and_does_not_move_them(config):
    known = recorded(3)

    def must_see(denoised):
        seen = jnp.all(jnp.where(known.mask, denoised == known.values, True))
        return jnp.where(seen, 1.0, jnp.nan) * jnp.ones_like(denoised)

    z = sample(denoise, jax.random.key(2), (3, H, C), config, must_see, 0.01, known)
    assert np.isfinite(z).all()
    np.testing.assert_allclose(z[:, 0, 0], known.values[:, 0, 0], rtol=1e-5, atol=1e-6)


@SOLVERS
@pytest.mark.parametrize("conditioning", ["replace", "regress"])
def test_nothing_known_is_the_free_sample(config, conditioning):
    config = SamplerConfig(num_steps=8, solver=config.solver, known_conditioning=conditioning)
    key, shape = jax.random.key(3), (5, 5, 6)
    nothing = Known(jnp.zeros(shape), jnp.zeros((1, 5, 6), bool))
    free, same = (
        sample(nonlinear_denoiser, jax.random.clone(key), shape, config, GUIDE, 0.6, k) for k in (None, nothing)
    )
    np.testing.assert_allclose(same, free, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("values", "mask"), [((2, H, C), (1, H, C)), ((3, H, C), (2, H, C)), ((3, H, C), (H, C))])
def test_wrong_shapes_of_known_entries_are_refused(values, mask):
    with pytest.raises(ValueError, match="known"):
        sample(denoise, jax.random.key(0), (3, H, C), HEUN, known=Known(jnp.zeros(values), jnp.zeros(mask, bool)))


@pytest.mark.parametrize("conditioning", ["replace", "regress"])
def test_lowers_for_accelerators(conditioning):
    for solver in ("heun", "dpm++"):
        config = SamplerConfig(num_steps=4, solver=solver, through_denoiser=True, known_conditioning=conditioning)
        program = jax.jit(functools.partial(sample, nonlinear_denoiser, shape=(4, 5, 6), config=config, guide=GUIDE))
        shapes = jax.eval_shape(
            lambda: {
                "key": jax.random.key(0),
                "guidance": jnp.float32(0.6),
                "known": Known(jnp.zeros((4, 5, 6)), jnp.zeros((1, 5, 6), bool)),
            }
        )
        exported = jax.export.export(program, platforms=("cuda", "tpu"))(**shapes)
        assert exported.platforms == ("cuda", "tpu")


# --- how near the conditional distribution is ---


def affine_sampler(known, num_steps):
    """The sample as a matrix on (start's noise, known values): Heun on the ideal denoiser, known rows replaced."""
    size, held = H * C, np.flatnonzero(known)
    values = np.hstack([np.zeros((held.size, size)), np.eye(held.size)])
    tau = np.hstack([80.0 * np.eye(size), np.zeros((size, held.size))])
    sigmas = np.asarray(karras_sigmas(num_steps), np.float64)

    def estimate(tau, sigma):
        denoised = COVARIANCE @ np.linalg.solve(COVARIANCE + sigma**2 * np.eye(size), tau)
        denoised[held] = values
        return denoised

    for sigma, following in itertools.pairwise(sigmas):
        d = (tau - estimate(tau, sigma)) / sigma
        predicted = tau + (following - sigma) * d
        if following > 0:
            d = (d + (predicted - estimate(predicted, following)) / following) / 2
        tau = tau + (following - sigma) * d
    return tau[:, :size], tau[:, size:]


def conditional(known):
    """Exact regression on the known entries, and covariance of all entries given them."""
    gain = COVARIANCE[:, known] @ np.linalg.inv(COVARIANCE[np.ix_(known, known)])
    return gain, COVARIANCE - gain @ COVARIANCE[known]


def regression(z, values):
    """Least squares of the sampled entries on the known ones, and the standard deviation about it."""
    flat, given = np.asarray(z, np.float64).reshape(len(z), -1), np.asarray(values, np.float64)[:, 0, :1]
    gain = np.linalg.lstsq(given, flat, rcond=None)[0].T
    return gain, (flat - given @ gain.T).std(axis=0)


def test_replacement_samples_the_distribution_of_its_own_ode():
    known = recorded(4000)
    of_noise, of_values = affine_sampler(START.ravel(), 32)
    gain, std = regression(draw(known, HEUN), known.values)
    np.testing.assert_allclose(gain, of_values, atol=0.06)  # 4 standard errors
    np.testing.assert_allclose(std, np.sqrt((of_noise**2).sum(axis=1)), atol=0.05)


def test_replacement_falls_short_of_the_conditional_distribution():
    # The numbers of the docstring of `hold`, in the limit of many steps.
    _, of_values = affine_sampler(START.ravel(), 256)
    exact, _ = conditional(START.ravel())
    assert exact[2, 0] == pytest.approx(0.969, abs=0.001)  # the next state on the start
    assert of_values[2, 0] == pytest.approx(0.51, abs=0.01)
    assert first_miss(draw(recorded(4000), HEUN)) > 4.5


@SOLVERS
def test_regression_samples_the_conditional_distribution_of_gaussian_data(config):
    known = recorded(4000)
    z = draw(known, SamplerConfig(config.num_steps, solver=config.solver, known_conditioning="regress"))
    gain, std = regression(z, known.values)
    exact_gain, exact_covariance = conditional(START.ravel())
    np.testing.assert_allclose(gain, exact_gain, atol=0.07)
    unknown = ~START.ravel()
    np.testing.assert_allclose(std[unknown], np.sqrt(np.diag(exact_covariance))[unknown], rtol=0.15)
    assert first_miss(z) < 1.2


# --- recorded starts under guidance ---


@SOLVERS
@pytest.mark.parametrize("through_denoiser", [False, True])
def test_guidance_selects_starts_unless_they_are_known(config, through_denoiser):
    """Large actions go with large starts in the data, so that guidance toward them raises the free starts."""
    config = SamplerConfig(config.num_steps, solver=config.solver, through_denoiser=through_denoiser)
    known = recorded(4000)
    apart, starts = [], []
    for scale in (0.0, 0.1, 0.6):
        held, free = (np.asarray(draw(k, config, scale)) for k in (known, None))
        np.testing.assert_allclose(held[:, 0, 0], known.values[:, 0, 0], rtol=1e-5, atol=1e-6)
        starts.append(free[:, 0, 0].mean())
        x, u = np.moveaxis(held * STD, -1, 0)
        apart.append(np.sqrt(np.mean((u - 0.3 * x - 1.2) ** 2)))
    assert abs(starts[0]) < 0.06 and starts[2] > 0.5 and starts[2] > starts[1] > starts[0]
    assert apart[0] > apart[1] > apart[2] and apart[2] < 0.15 * apart[0]


@SOLVERS
def test_next_states_follow_guided_actions_from_known_starts(config):
    settings = {"solver": config.solver, "through_denoiser": True}
    known, missed = recorded(4000), {}
    for conditioning in ("replace", "regress"):
        z = draw(known, SamplerConfig(config.num_steps, known_conditioning=conditioning, **settings), 0.1)
        missed[conditioning] = first_miss(z)
    assert missed["regress"] < 0.5 * missed["replace"]
