import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from coda_jax.marl.gru import gru

INPUTS, FEATURES = 5, 4
CELL = nn.GRUCell(FEATURES)


def scanned_cell(params, x, carry):
    """The straightforward implementation: flax's cell in a scan."""

    def step(carry, x):
        return CELL.apply({"params": params}, carry, x)

    return jax.lax.scan(step, carry, x)[1]


def inputs(horizon, num_sequences):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (horizon, num_sequences, INPUTS))
    carry = jax.random.normal(keys[1], (num_sequences, FEATURES))
    flat, unflatten = ravel_pytree(CELL.init(keys[2], carry, x[0])["params"])
    return unflatten(flat + 0.5 * jax.random.normal(keys[3], flat.shape)), x, carry


def assert_close(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@settings(max_examples=6)
@given(horizon=st.integers(1, 6), num_sequences=st.integers(1, 3))
@pytest.mark.slow
def test_values_and_all_gradients_are_those_of_the_scanned_cell(horizon, num_sequences):
    arguments = inputs(horizon, num_sequences)
    weight = jax.random.normal(jax.random.key(5), (horizon, num_sequences, FEATURES))
    results = [
        jax.value_and_grad(lambda *a, f=f: jnp.sum(weight * jnp.sin(f(*a))), argnums=(0, 1, 2))(*arguments)
        for f in (gru, scanned_cell)
    ]
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    assert_close(*results)


@pytest.mark.slow
def test_seeds_vmapped_equal_the_same_seeds_alone():
    params, x, carry = inputs(3, 2)
    scales = jnp.asarray([0.5, 1.5])

    def gradient(scale):
        return jax.grad(lambda p: jnp.sum(gru(jax.tree.map(lambda leaf: scale * leaf, p), x, carry) ** 2))(params)

    together = jax.vmap(gradient)(scales)
    for seed in range(2):
        assert_close(jax.tree.map(lambda leaf, seed=seed: leaf[seed], together), gradient(scales[seed]))


def test_gradients_are_reverse_mode_only():
    params, x, carry = inputs(2, 1)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: gru(params, x, carry), (x,), (x,))
