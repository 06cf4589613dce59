"""Layer normalisation with its gradient written out: two reductions instead of automatic differentiation's five.

Reductions over features are matrix products with a vector, which XLA's CPU backend vectorises and its own reductions it
does not. The gradient is reverse-mode only.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-6


def _mean(x: Float[Array, "N F"]) -> Float[Array, "N 1"]:
    return x @ jnp.full((x.shape[-1], 1), 1.0 / x.shape[-1])


def _forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    centred = x - _mean(x)
    inverse_std = jax.lax.rsqrt(_mean(centred * centred) + EPSILON)
    y = centred * inverse_std
    return y, (y, inverse_std)


@jax.custom_vjp
def standardise(x: Float[Array, "N F"]) -> Float[Array, "N F"]:
    """Every row minus its mean, divided by its standard deviation (of mean square `EPSILON` more)."""
    return _forward(x)[0]


def _backward(residuals: tuple[Array, Array], d_y: Array) -> tuple[Array]:
    y, inverse_std = residuals
    d_y = jax.lax.optimization_barrier(d_y)  # computed once, not in each of the three kernels that use it
    return ((d_y - _mean(d_y) - y * _mean(d_y * y)) * inverse_std,)


standardise.defvjp(_forward, _backward)


class LayerNorm(nn.Module):
    """`flax.linen.LayerNorm` of rows: same equations and parameters."""

    @nn.compact
    def __call__(self, x: Float[Array, "N F"]) -> Float[Array, "N F"]:
        """Standardises each row, then scales and shifts its features."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return standardise(x) * scale[None] + bias[None]
