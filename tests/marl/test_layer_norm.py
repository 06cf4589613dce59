import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coda_jax.marl.layer_norm import CentredLayerNorm


def centre(x):
    return x - jnp.mean(x, axis=-1, keepdims=True)


@settings(max_examples=5)
@given(
    num_rows=st.integers(1, 4),
    num_features=st.integers(2, 9),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_values_and_gradients_are_those_of_flax(num_rows, num_features, scale):
    keys = jax.random.split(jax.random.key(0), 4)
    x = centre(scale * jax.random.normal(keys[0], (num_rows, num_features)))
    params = {
        "params": {
            "scale": jax.random.normal(keys[1], (num_features,)),
            "bias": jax.random.normal(keys[2], (num_features,)),
        }
    }
    weight = jax.random.normal(keys[3], x.shape)
    module = nn.LayerNorm(use_fast_variance=False)
    for f in (lambda p, x: x, lambda p, x: weight * jnp.sin(x)):
        ours, flax = (
            jax.jit(jax.value_and_grad(lambda p, x, m=m, f=f: jnp.sum(f(p, m.apply(p, centre(x)))), argnums=(0, 1)))(
                params, x
            )
            for m in (CentredLayerNorm(), module)
        )
        tolerance = 1e-4 * max(1.0, 1.0 / scale)  # gradients are as large as inputs are small
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=tolerance)


def test_parameters_start_as_those_of_flax():
    x = jnp.ones((2, 3))
    ours, flax = (jax.jit(m.init)(jax.random.key(0), x) for m in (CentredLayerNorm(), nn.LayerNorm()))
    assert jax.tree.structure(ours) == jax.tree.structure(flax)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
        np.testing.assert_array_equal(a, b)
