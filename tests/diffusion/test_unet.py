"""The U-Net: all horizons, zero initialisation, and effects of noise level, position and condition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.diffusion.unet import TemporalConv, UNet, UNetConfig

SMALL = UNetConfig(width=4, embedding_dim=4)


def build(horizon=5, channels=3, config=SMALL, condition_dim=0, seed=0):
    """A network and weights whose last layer is no longer zero."""
    network = UNet(config, horizon, condition_dim)
    key_init, key_output = jax.random.split(jax.random.key(seed))
    condition = jnp.zeros((1, condition_dim)) if condition_dim else None
    params = jax.jit(network.init)(key_init, jnp.zeros((1, horizon, channels)), jnp.zeros((1, 1, 1)), condition)
    kernel = params["params"]["output"]["taps"]["kernel"]
    params["params"]["output"]["taps"]["kernel"] = jax.random.normal(key_output, kernel.shape)
    return jax.jit(network.apply), params


def inputs(batch, horizon=5, channels=3, seed=1):
    key_x, key_noise = jax.random.split(jax.random.key(seed))
    return jax.random.normal(key_x, (*batch, horizon, channels)), jax.random.normal(key_noise, (*batch, 1, 1))


@pytest.mark.parametrize(("horizon", "stride", "kernel_size"), [(1, 1, 3), (1, 2, 3), (6, 2, 3), (7, 2, 5), (7, 1, 4)])
def test_temporal_convolution_equals_flax(horizon, stride, kernel_size):
    x, _ = inputs((2,), horizon)
    conv = TemporalConv(4, kernel_size, stride)
    y, params = conv.init_with_output(jax.random.key(0), x)
    kernel = params["params"]["taps"]["kernel"].reshape(kernel_size, 3, 4)
    padding = [((kernel_size - 1) // 2, kernel_size // 2)]
    expected = jax.lax.conv_general_dilated(x, kernel, (stride,), padding, dimension_numbers=("NHC", "HIO", "NHC"))
    assert y.shape == (2, -(-horizon // stride), 4)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("horizon", [1, 2, 5, 7, 20, 21])
def test_any_horizon_keeps_its_shape(horizon):
    network = UNet(dataclasses.replace(SMALL, channel_multipliers=(1, 2, 2)), horizon)
    x, c_noise = inputs((2,), horizon)
    output, params = jax.eval_shape(network.init_with_output, jax.random.key(0), x, c_noise)
    assert output.shape == x.shape and output.dtype == jnp.float32
    assert params["params"]["position"].shape == (horizon, SMALL.embedding_dim)


@pytest.mark.parametrize("horizon", [1, 7])
def test_every_weight_learns(horizon):
    apply, params = build(horizon)
    x, c_noise = inputs((2,), horizon)
    grads = jax.jit(jax.grad(lambda params: jnp.mean(apply(params, x, c_noise) ** 2)))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.all(np.isfinite(grad)) and np.any(grad != 0), path


def test_output_starts_at_zero():
    x, c_noise = inputs((4,))
    network = UNet(SMALL, 5)
    output, _ = jax.jit(network.init_with_output)(jax.random.key(0), x, c_noise)
    assert output.shape == x.shape and not np.any(output)


def test_default_sizes_are_the_papers():
    network = UNet(UNetConfig(), 20)
    x, c_noise = inputs((1,), 20, 49)
    params = jax.eval_shape(network.init, jax.random.key(0), x, c_noise)["params"]
    assert params["input"]["taps"]["kernel"].shape == (3 * 49, 16)
    assert params["position"].shape == (20, 16)
    assert {"encoder_0", "encoder_1", "decoder_0", "decoder_1"} <= params.keys() and "encoder_2" not in params


def test_any_leading_axes_and_independent_trajectories():
    apply, params = build()
    x, c_noise = inputs((2, 3))
    together = apply(params, x, c_noise)
    alone = [apply(params, x[i, j], c_noise[i, j]) for i in range(2) for j in range(3)]
    np.testing.assert_allclose(together, jnp.stack(alone).reshape(together.shape), rtol=1e-4, atol=1e-4)


def test_vmap_with_shared_weights_equals_a_loop():
    apply, params = build()
    x, c_noise = inputs((3, 4))
    mapped = jax.jit(jax.vmap(apply, in_axes=(None, 0, 0)))(params, x, c_noise)
    looped = jnp.stack([apply(params, x[seed], c_noise[seed]) for seed in range(3)])
    np.testing.assert_allclose(mapped, looped, rtol=1e-4, atol=1e-4)


def test_shared_noise_level_equals_one_a_trajectory():
    apply, params = build()
    x, _ = inputs((4,))
    shared = apply(params, x, jnp.full((1, 1, 1), 0.3))
    np.testing.assert_allclose(shared, apply(params, x, jnp.full((4, 1, 1), 0.3)), rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(shared - apply(params, x, jnp.full((1, 1, 1), -0.3)))) > 1e-2


def test_more_channels_than_features_are_transmitted():
    """At low noise the denoiser needs every channel, however few features the U-Net has."""
    apply, params = build(horizon=1, channels=12)
    x, c_noise = jnp.ones((1, 12)), jnp.zeros((1, 1))
    jacobian = jax.jacobian(lambda x: apply(params, x, c_noise)[0])(x)[:, 0]
    assert np.linalg.matrix_rank(jacobian, tol=1e-3) == 12 > SMALL.width


def test_position_matters():
    apply, params = build(horizon=6)
    constant = jnp.ones((1, 6, 3))
    with_position = apply(params, constant, jnp.zeros((1, 1, 1)))
    params["params"]["position"] = jnp.zeros_like(params["params"]["position"])
    assert np.max(np.abs(with_position - apply(params, constant, jnp.zeros((1, 1, 1))))) > 1e-3


def test_dropped_conditions_become_the_learned_null_token():
    apply, params = build(condition_dim=2)
    x, c_noise = inputs((4,))
    condition = jax.random.normal(jax.random.key(2), (4, 2))
    given = apply(params, x, c_noise, condition)
    null = apply(params, x, c_noise)
    dropped = jnp.array([True, False, True, False])
    mixed = apply(params, x, c_noise, condition, dropped)
    np.testing.assert_allclose(mixed[dropped], null[dropped], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mixed[~dropped], given[~dropped], rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(given - null)) > 1e-2
    assert np.max(np.abs(apply(params, x, c_noise, jnp.zeros((4, 2))) - null)) > 1e-2  # zeros are a condition


def test_one_condition_may_serve_the_whole_batch():
    apply, params = build(condition_dim=2)
    x, c_noise = inputs((4,))
    shared = apply(params, x, c_noise, jnp.array([[0.5, -1.0]]))
    np.testing.assert_allclose(
        shared, apply(params, x, c_noise, jnp.tile(jnp.array([[0.5, -1.0]]), (4, 1))), rtol=1e-5, atol=1e-5
    )


def test_conditions_that_do_not_fit_are_refused():
    x, c_noise = inputs((4,))
    apply, params = build()
    with pytest.raises(ValueError, match="unconditional"):
        apply(params, x, c_noise, jnp.zeros((4, 2)))
    apply, params = build(condition_dim=2)
    with pytest.raises(ValueError, match="expected 2 axes, the last of 2"):
        apply(params, x, c_noise, jnp.zeros((4, 3)))
