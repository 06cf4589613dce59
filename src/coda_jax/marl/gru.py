"""A GRU along a window, with an explicit gradient.

Automatic differentiation of a scan adds each step's part of the weight gradients to an accumulator. Here the backward
scan stores the gradients of the gates, and those of the weights are one matrix product over all steps. The
gradient is reverse-mode only.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.types import Params

INPUT_GATES = ("ir", "iz", "in")
MEMORY_GATES = ("hr", "hz", "hn")


def _scan(
    params: Params, x: Float[Array, "H N I"], carry: Float[Array, "N F"]
) -> tuple[Float[Array, "H N F"], tuple[Array, ...]]:
    """Hidden states h_t, and the values of each step for the gradient: r, z, n and the memory's part m of n."""
    # Products of the inputs with all three gates stay apart: slices of a merged product would be computed anew in each
    # of the fused element-wise kernels that use them.
    inputs = tuple(
        (x.reshape(-1, x.shape[-1]) @ params[gate]["kernel"] + params[gate]["bias"][None]).reshape(*x.shape[:2], -1)
        for gate in INPUT_GATES
    )
    kernels, bias = tuple(params[gate]["kernel"] for gate in MEMORY_GATES), params["hn"]["bias"][None]

    def step(h: Array, inputs: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        r = jax.nn.sigmoid(inputs[0] + h @ kernels[0])
        z = jax.nn.sigmoid(inputs[1] + h @ kernels[1])
        m = h @ kernels[2] + bias
        n = jnp.tanh(inputs[2] + r * m)
        h = (1.0 - z) * n + z * h
        return h, (h, r, z, n, m)

    _, (hidden, *gates) = jax.lax.scan(step, carry, inputs)
    return hidden, tuple(gates)


@jax.custom_vjp
def gru(params: Params, x: Float[Array, "H N I"], carry: Float[Array, "N F"]) -> Float[Array, "H N F"]:
    """The hidden states of N sequences along H steps, the time axis first.

    Args:
        params: of `flax.linen.GRUCell`, whose equations these are.
        x: the inputs.
        carry: the hidden states before the first step.
    """
    return _scan(params, x, carry)[0]


def _forward(params: Params, x: Array, carry: Array) -> tuple[Array, tuple]:
    hidden, gates = _scan(params, x, carry)
    return hidden, (params, x, jnp.concatenate([carry[None], hidden[:-1]]), gates)


def _backward(residuals: tuple, d_hidden: Array) -> tuple[Params, Array, Array]:
    params, x, previous, gates = residuals
    size = d_hidden.shape[-1]
    memory_kernels = jnp.concatenate([params[gate]["kernel"] for gate in MEMORY_GATES], axis=1)
    input_kernels = jnp.concatenate([params[gate]["kernel"] for gate in INPUT_GATES], axis=1)

    def step(d_h: Array, inputs: tuple) -> tuple[Array, tuple[Array, Array]]:
        d_out, h, (r, z, n, m) = inputs
        d_h = d_h + d_out
        d_n = d_h * (1.0 - z) * (1.0 - n * n)
        d_z = d_h * (h - n) * z * (1.0 - z)
        d_r = d_n * m * r * (1.0 - r)
        d_memory = jnp.concatenate([d_r, d_z, d_n * r], axis=-1)
        return d_h * z + d_memory @ memory_kernels.T, (d_memory, d_n)

    d_carry, (d_memory, d_n) = jax.lax.scan(
        step, jnp.zeros_like(d_hidden[0]), (d_hidden, previous, gates), reverse=True
    )
    d_memory, d_n = d_memory.reshape(-1, 3 * size), d_n.reshape(-1, size)
    d_inputs = jnp.concatenate([d_memory[:, : 2 * size], d_n], axis=-1)
    ones = jnp.ones((1, d_n.shape[0]))  # a sum over rows, as a matrix product
    d_x = (d_inputs @ input_kernels.T).reshape(x.shape)
    of_inputs = jnp.split(x.reshape(-1, x.shape[-1]).T @ d_inputs, 3, axis=1)
    of_biases = jnp.split((ones @ d_inputs)[0], 3)
    of_memory = jnp.split(previous.reshape(-1, size).T @ d_memory, 3, axis=1)
    d_params = {
        gate: {"kernel": kernel, "bias": bias}
        for gate, kernel, bias in zip(INPUT_GATES, of_inputs, of_biases, strict=True)
    } | {gate: {"kernel": kernel} for gate, kernel in zip(MEMORY_GATES, of_memory, strict=True)}
    d_params["hn"]["bias"] = (ones @ d_memory[:, 2 * size :])[0]
    return d_params, d_x, d_carry


gru.defvjp(_forward, _backward)
