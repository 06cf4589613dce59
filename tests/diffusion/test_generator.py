"""The prior: optimiser, moving average, condition dropout; the fit of correlated Gaussians has minimal loss."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.diffusion import edm
from coda_jax.diffusion.generator import (
    GeneratorConfig,
    accumulated_gradient,
    fit_chunk,
    learning_rate_schedule,
    make_generator,
    make_optimizer,
    num_micro_batches,
    update_ema,
)
from coda_jax.diffusion.unet import UNetConfig
from tests.lowering import lower_for_accelerators

TINY = GeneratorConfig(unet=UNetConfig(width=4, channel_multipliers=(1,), embedding_dim=4), num_updates=100)
HORIZON, CHANNELS = 5, 2
CORRELATION = 0.95


def autoregressive(key, batch):
    """Unit-variance AR(1) trajectories `[batch, H, C]`, channels independent."""
    noise = jax.random.normal(key, (HORIZON, batch, CHANNELS))

    def step(z, eps):
        z = CORRELATION * z + jnp.sqrt(1 - CORRELATION**2) * eps
        return z, z

    _, rest = jax.lax.scan(step, noise[0], noise[1:])
    return jnp.concatenate([noise[:1], rest]).swapaxes(0, 1)


def least_loss():
    """E over sigma of the EDM weight times the mean posterior variance, from the covariance's eigenvalues."""
    covariance = CORRELATION ** np.abs(np.subtract.outer(np.arange(HORIZON), np.arange(HORIZON)))
    variances = np.linalg.eigvalsh(covariance)
    nodes, masses = np.polynomial.hermite_e.hermegauss(80)
    sigma = np.clip(np.exp(-1.2 + 1.2 * nodes), 0.002, 80.0)[:, None]
    posterior = variances * sigma**2 / (variances + sigma**2)
    return np.sum(masses * np.mean((sigma**2 + 1) / sigma**2 * posterior, axis=1)) / np.sum(masses)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_training_approaches_the_least_loss_of_correlated_data(optimizer):
    # Samples use the moving average, so its loss is measured.
    config = dataclasses.replace(
        TINY,
        unet=UNetConfig(width=16, embedding_dim=16),
        num_updates=600,
        optimizer=optimizer,
        learning_rate=5e-3,
        ema_decay=0.98,
    )
    generator = make_generator(config, CHANNELS, HORIZON)
    key_init, key_fit, key_data, key_loss = jax.random.split(jax.random.key(0), 4)
    state = jax.jit(generator.init)(key_init)
    held_out = autoregressive(key_data, 20_000)
    evaluate = jax.jit(generator.loss)
    before = evaluate(state.params, held_out, key_loss)

    fit = jax.jit(
        lambda state, key: fit_chunk(generator, state, lambda key: (autoregressive(key, 64), None), key, 600),
        donate_argnums=0,
    )
    state, metrics = fit(state, key_fit)
    after = evaluate(state.ema, held_out, jax.random.clone(key_loss))
    best = least_loss()
    np.testing.assert_allclose(before, 1.0, atol=0.02)  # the zero network's loss is the target's variance
    assert int(state.step) == 600 and metrics["loss"].shape == ()
    assert 0.97 * best < after < best + 0.15 * (before - best)


def test_held_out_loss_is_the_edm_loss_of_the_denoiser():
    generator = make_generator(TINY, CHANNELS, HORIZON)
    params = jax.jit(generator.init)(jax.random.key(0)).params
    params["params"]["output"]["taps"]["kernel"] += 0.3
    z = jax.random.normal(jax.random.key(2), (8, HORIZON, CHANNELS))
    _, key_loss = jax.random.split(jax.random.key(3))
    expected = edm.loss(functools.partial(jax.jit(generator.denoise), params), z, key_loss)
    np.testing.assert_allclose(jax.jit(generator.loss)(params, z, jax.random.key(3)), expected, rtol=1e-5)


def test_plain_weight_is_the_unweighted_error():
    plain = make_generator(dataclasses.replace(TINY, weight="plain"), CHANNELS, HORIZON)
    state = jax.jit(plain.init)(jax.random.key(0))
    z = jax.random.normal(jax.random.key(1), (5_000, HORIZON, CHANNELS))
    nodes, masses = np.polynomial.hermite_e.hermegauss(80)
    variance = np.exp(2 * np.clip(-1.2 + 1.2 * nodes, np.log(0.002), np.log(80.0)))
    expected = np.sum(masses * variance / (1 + variance)) / np.sum(masses)  # posterior variance of N(0, 1) data
    np.testing.assert_allclose(jax.jit(plain.loss)(state.params, z, jax.random.key(2)), expected, rtol=0.03)


def test_update_advances_every_part_of_the_state():
    generator = make_generator(TINY, CHANNELS, HORIZON)
    start = jax.jit(generator.init)(jax.random.key(0))
    update = jax.jit(generator.update)
    z = jax.random.normal(jax.random.key(1), (8, HORIZON, CHANNELS))
    first, metrics = update(start, z, jax.random.key(2))  # learning rate 0: the schedule starts there
    second, _ = update(first, z, jax.random.key(3))
    assert (int(first.step), int(second.step)) == (1, 2)
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    jax.tree.map(np.testing.assert_array_equal, first.params, start.params)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), second.params, first.params)
    assert max(jax.tree.leaves(moved)) > 0
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        second.ema,
        update_ema(first.ema, second.params, jnp.array(2), TINY.ema_decay),
    )


def average_of(values, decay, start=0.0):
    average = {"w": jnp.array(start)}
    for step, value in enumerate(values, start=1):
        average = update_ema(average, {"w": jnp.array(float(value))}, jnp.array(step), decay)
    return average["w"]


def test_moving_average_of_a_ramp_lags_by_a_tenth_then_by_its_time_constant():
    # With decay s / (s + 9) the weight of value k is C(k + 8, 8) / C(n + 9, 9), so 1, 2, ..., n averages to 0.9 n.
    np.testing.assert_allclose(average_of(range(1, 31), 0.999), 0.9 * 30, rtol=1e-5)
    # A constant decay d lags behind a ramp by d / (1 - d).
    np.testing.assert_allclose(average_of(range(1, 81), 0.6), 80 - 0.6 / 0.4, rtol=1e-5)


def test_moving_average_forgets_its_start():
    share_of_start = np.prod([step / (step + 9) for step in range(1, 11)])
    np.testing.assert_allclose(average_of([1.0] * 10, 0.999, start=1e5), 1 + 1e5 * share_of_start, rtol=1e-3)
    assert share_of_start < 2e-5


def test_learning_rate_warms_up_and_ends_at_zero():
    schedule = learning_rate_schedule(dataclasses.replace(TINY, num_updates=1000), peak=0.01)
    rates = np.array([schedule(step) for step in (0, 25, 50, 525, 1000)])
    np.testing.assert_allclose(rates, [0.0, 0.005, 0.01, 0.005, 0.0], atol=1e-7)


def test_muon_moves_convolutions_along_all_directions_alike_and_the_rest_as_nadam():
    """From the factors of the gradient: singular values become about one, and Nadam's first step has its sign alone."""
    config = dataclasses.replace(
        TINY, optimizer="muon", warmup_fraction=0.0, learning_rate=1e-3, muon_learning_rate=0.05, max_grad_norm=1e6
    )
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    right, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    kernel = jnp.asarray(left * np.geomspace(1.0, 0.05, 6) @ right, jnp.float32)
    gradient = {"taps": {"kernel": kernel, "bias": jnp.ones(3)}, "other": {"kernel": jnp.ones((4, 4))}}
    optimizer = make_optimizer(config)
    steps: Any = optimizer.update(gradient, optimizer.init(gradient), gradient)[0]
    along = -np.diag(left.T @ np.asarray(steps["taps"]["kernel"]) @ right.T) / config.muon_learning_rate
    # Five Newton-Schulz steps end between 0.7 and 1.2.
    assert (along > 0.6).all() and (along < 1.3).all()
    for rest in (steps["taps"]["bias"], steps["other"]["kernel"]):
        np.testing.assert_allclose(rest, -1e-3 * (0.9 * 0.1 / (1 - 0.9**2) + 1), rtol=1e-3)


def test_an_update_by_muon_lowers_for_accelerators():
    generator = make_generator(dataclasses.replace(TINY, optimizer="muon"), CHANNELS, HORIZON)
    state = jax.eval_shape(generator.init, jax.random.key(0))
    z = jax.ShapeDtypeStruct((8, HORIZON, CHANNELS), jnp.float32)
    update = jax.jit(generator.update)
    lower_for_accelerators({("update", "", 0): (update, (state, z, jax.random.key(1)), {})})


@pytest.mark.slow
def test_conditions_are_dropped_at_the_given_rate():
    """The objective mixes the loss with y and the loss with the null token, here far away, by the dropout rate."""
    condition = jax.random.normal(jax.random.key(3), (4_000, 2))
    z = jax.random.normal(jax.random.key(2), (4_000, 1, 2))
    config = dataclasses.replace(TINY, condition_dim=2)
    params = jax.jit(make_generator(config, 2, 1).init)(jax.random.key(0)).params
    params["params"]["null_token"] = jnp.full((4,), 30.0)
    kernel = params["params"]["output"]["taps"]["kernel"]
    params["params"]["output"]["taps"]["kernel"] = jax.random.normal(jax.random.key(1), kernel.shape)

    def objective(condition_dropout, condition):
        generator = make_generator(dataclasses.replace(config, condition_dropout=condition_dropout), 2, 1)
        return float(jax.jit(generator.loss)(params, z, jax.random.key(4), condition))

    given, null = objective(0.0, condition), objective(0.0, None)
    assert abs(given - null) > 0.1
    for dropout in (0.1, 1.0):
        share = (objective(dropout, condition) - given) / (null - given)
        np.testing.assert_allclose(share, dropout, atol=0.03)


@pytest.mark.slow
def test_the_condition_is_learned():
    """Data equal to the condition: with y the error vanishes, without it the posterior's remains."""
    config = dataclasses.replace(
        TINY, unet=UNetConfig(width=16, embedding_dim=16), condition_dim=1, learning_rate=1e-2, num_updates=300
    )
    generator = make_generator(config, 1, 1)
    key_init, key_fit, key_data, key_noise = jax.random.split(jax.random.key(5), 4)

    def batch(key):
        y = jnp.sign(jax.random.normal(key, (128, 1)))
        return y[:, None, :], y

    state, _ = jax.jit(lambda state, key: fit_chunk(generator, state, batch, key, 300))(
        jax.jit(generator.init)(key_init), key_fit
    )
    z, y = batch(key_data)
    tau = z + 3.0 * jax.random.normal(key_noise, z.shape)
    denoise = jax.jit(generator.denoise)
    with_condition = jnp.mean((denoise(state.ema, tau, 3.0, y) - z) ** 2)
    without = jnp.mean((denoise(state.ema, tau, 3.0) - z) ** 2)
    posterior = jnp.mean((jnp.tanh(tau / 9.0) - z) ** 2)
    assert with_condition < 0.1
    np.testing.assert_allclose(without, posterior, atol=0.15)


def test_vmapped_seeds_with_a_shared_denoiser_equal_a_loop():
    generator = make_generator(TINY, CHANNELS, HORIZON)
    params = jax.jit(generator.init)(jax.random.key(0)).params
    params["params"]["output"]["taps"]["kernel"] += 0.1
    tau = jax.random.normal(jax.random.key(1), (3, 4, HORIZON, CHANNELS))
    mapped = jax.jit(jax.vmap(generator.denoise, in_axes=(None, 0, None)))(params, tau, 0.4)
    looped = jnp.stack([jax.jit(generator.denoise)(params, tau[seed], 0.4) for seed in range(3)])
    np.testing.assert_allclose(mapped, looped, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("weight", "condition_dim"),
    [("edm", 2), ("edm", 0), ("plain", 0), ("plain", 2)],
)
@pytest.mark.slow
def test_micro_batches_make_the_update_of_the_full_batch(weight, condition_dim):
    config = dataclasses.replace(TINY, weight=weight, condition_dim=condition_dim, condition_dropout=0.5)
    z = jax.random.normal(jax.random.key(1), (12, HORIZON, CHANNELS))
    condition = jax.random.normal(jax.random.key(2), (12, condition_dim)) if condition_dim else None

    def fit(max_windows):
        generator = make_generator(config, CHANNELS, HORIZON, max_windows)

        def chunk(state):
            return fit_chunk(generator, state, lambda key: (z, condition), jax.random.key(3), 4)

        return jax.jit(chunk)(jax.jit(generator.init)(jax.random.key(0)))

    with jax.debug_key_reuse(False):
        (full, of_full), (parts, of_parts) = fit(12), fit(5)  # 3 micro-batches of 4
    assert int(parts.step) == 4
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), of_parts, of_full)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), parts.params, full.params)


def test_the_gradient_of_micro_batches_is_that_of_the_mean():
    x = jnp.arange(12.0)
    value, gradient = accumulated_gradient(lambda w, x: jnp.mean(jnp.square(w - x)), jnp.float32(2.0), x, 4)
    np.testing.assert_allclose(value, np.mean((2.0 - np.arange(12)) ** 2), rtol=1e-6)
    np.testing.assert_allclose(gradient, 2 * (2.0 - 5.5), rtol=1e-6)


@pytest.mark.parametrize(("batch", "most", "parts"), [(128, 4096, 1), (100_000, 20_000, 5), (12, 5, 3), (7, 3, 7)])
def test_micro_batches_are_equal_and_fit(batch, most, parts):
    assert num_micro_batches(batch, most) == parts


@pytest.mark.slow
def test_micro_batches_need_less_memory():
    def bytes_of(max_windows):
        generator = make_generator(TINY, CHANNELS, HORIZON, max_windows)
        state = jax.eval_shape(generator.init, jax.random.key(0))
        z = jax.ShapeDtypeStruct((4096, HORIZON, CHANNELS), jnp.float32)
        program = jax.jit(generator.update).lower(state, z, jax.random.key(1)).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert bytes_of(512) < bytes_of(4096) / 3
