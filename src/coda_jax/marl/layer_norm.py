"""Layer normalisation of centred features, with an explicit gradient.

A layer whose weights have mean zero over its features gives centred features at no cost, so that forward and backward
pass need one reduction over the features each. The reduction is a product of a matrix and a vector, which XLA's CPU
backend vectorises, unlike its reductions. The gradient is reverse-mode only.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-6


def _mean(x: Float[Array, "N F"]) -> Float[Array, "N 1"]:
    return x @ jnp.full((x.shape[-1], 1), 1.0 / x.shape[-1])


def _forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    inverse_std = jax.lax.rsqrt(_mean(x * x) + EPSILON)
    y = x * inverse_std
    return y, (y, inverse_std)


@jax.custom_vjp
def normalise(x: Float[Array, "N F"]) -> Float[Array, "N F"]:
    """Every row divided by its root mean square; `EPSILON` is added to the mean square."""
    return _forward(x)[0]


def _backward(residuals: tuple[Array, Array], d_y: Array) -> tuple[Array]:
    y, inverse_std = residuals
    d_y = jax.lax.optimization_barrier(d_y)  # computed once, not in each of the kernels that use it
    return ((d_y - y * _mean(d_y * y)) * inverse_std,)


normalise.defvjp(_forward, _backward)


class CentredLayerNorm(nn.Module):
    """`flax.linen.LayerNorm` of rows whose means are 0: same equations and parameters."""

    @nn.compact
    def __call__(self, x: Float[Array, "N F"]) -> Float[Array, "N F"]:
        """Normalises each row, then scales and shifts its features."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return normalise(x) * scale[None] + bias[None]
