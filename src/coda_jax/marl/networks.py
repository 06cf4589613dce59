"""Networks of the continuous-control learners: a recurrent policy shared by the agents, and centralised critics."""

import functools
import itertools
import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.marl.gru import gru
from coda_jax.marl.layer_norm import CentredLayerNorm


class RecurrentPolicy(nn.Module):
    """The deterministic policies mu^i(o^i) of all agents, as one network conditioned on a one-hot agent id (Table 5).

    Linear - relu - GRU - relu - Linear - tanh, with the time axis first; only the GRU is scanned.

    linear_width: width of the first layer.
    hidden_width: N, features of the GRU's hidden state.
    action_dim:   U, the actions of one agent.
    """

    linear_width: int
    hidden_width: int
    action_dim: int

    @nn.compact
    def __call__(
        self, obs: Float[Array, "H *batch A O"], carry: Float[Array, "*batch A N"]
    ) -> tuple[Float[Array, "H *batch A U"], Float[Array, "*batch A N"]]:
        """The actions of H steps from the hidden state `carry`, and the last hidden state."""
        num_agents = obs.shape[-2]
        agent_id = jnp.broadcast_to(jnp.eye(num_agents, dtype=obs.dtype), (*obs.shape[:-1], num_agents))
        x = jnp.concatenate([agent_id, obs], axis=-1)
        x = nn.relu(nn.Dense(self.linear_width)(x))
        # flax's default initialiser, orthogonal, calls LAPACK's QR, which deadlocks in XLA's thread pool when it is
        # batched over seeds on as many host devices as there are cores.
        initializer = nn.initializers.lecun_normal()
        cell = nn.GRUCell(self.hidden_width, recurrent_kernel_init=initializer, name="ScanGRUCell_0")
        if self.is_initializing():
            cell(carry, x[0])
        sequences = x.reshape(x.shape[0], -1, self.linear_width)
        hidden = gru(cell.variables["params"], sequences, carry.reshape(-1, self.hidden_width))
        action = nn.tanh(nn.Dense(self.action_dim)(nn.relu(hidden)))
        return action.reshape(*obs.shape[:-1], self.action_dim), hidden[-1].reshape(carry.shape)


class CriticLayer(nn.Module):
    """A linear layer of concatenated inputs, with the parameters of `flax.linen.Dense`.

    The product of each input with its rows of the kernel is computed separately, so that of a state is computed once
    for all actions in that state.

    width: W, output features.
    centred: whether to subtract the mean over features from kernel and bias, so that the features have mean zero.
    """

    width: int
    centred: bool

    @nn.compact
    def __call__(self, *inputs: Float[Array, "..."]) -> Float[Array, "*batch W"]:
        """The features `[*batch, W]`; axes of size one in one input are broadcast against the others."""
        sizes = [x.shape[-1] for x in inputs]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (sum(sizes), self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        if self.centred:
            kernel, bias = (x - jnp.mean(x, axis=-1, keepdims=True) for x in (kernel, bias))
        rows = jnp.split(kernel, list(itertools.accumulate(sizes))[:-1])
        parts = [x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) @ w for x, w in zip(inputs, rows, strict=True)]
        parts[0] = parts[0] + bias[None]
        parts = [part.reshape(*x.shape[:-1], self.width) for part, x in zip(parts, inputs, strict=True)]
        return functools.reduce(jnp.add, parts)


class Critic(nn.Module):
    """A centralised state-joint-action value Q(s, a): a relu network (Table 5).

    widths: widths of the hidden layers.
    layer_norm: whether to apply layer normalisation before each relu, which bounds values outside the data
        (Ball et al. 2023; Tarasov et al. 2023).
    """

    widths: tuple[int, ...]
    layer_norm: bool = False

    @nn.compact
    def __call__(
        self, state: Float[Array, "*states S"], joint_action: Float[Array, "*batch A U"]
    ) -> Float[Array, "*batch"]:
        """The value of every state and joint action; batch axes of size one in `state` are broadcast."""
        *batch_shape, num_agents, action_dim = joint_action.shape
        joint_action = joint_action.reshape(*batch_shape, num_agents * action_dim)
        x = (state, joint_action)
        for layer, width in enumerate(self.widths):
            x = CriticLayer(width, self.layer_norm, name=f"Dense_{layer}")(*x).reshape(-1, width)
            x = (nn.relu(CentredLayerNorm(name=f"LayerNorm_{layer}")(x) if self.layer_norm else x),)
        return nn.Dense(1, name=f"Dense_{len(self.widths)}")(*x).reshape(batch_shape)


class TwinCritic(nn.Module):
    """Two critics with independent initial weights; their parameters are stacked on a leading axis of two.

    widths: widths of the hidden layers of each.
    layer_norm: as in `Critic`.
    """

    widths: tuple[int, ...]
    layer_norm: bool = False

    @nn.compact
    def __call__(
        self, state: Float[Array, "*states S"], joint_action: Float[Array, "*batch A U"]
    ) -> Float[Array, "2 *batch"]:
        """The values of both critics; axes as in `Critic`."""
        critics = nn.vmap(
            Critic,
            in_axes=0,
            axis_size=2,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        # Each critic gets a copy of the inputs: the gradient with respect to a shared input would be one product over
        # the features of both critics, for which XLA transposes them.
        state, joint_action = (jnp.broadcast_to(x[None], (2, *x.shape)) for x in (state, joint_action))
        return critics(self.widths, self.layer_norm)(state, joint_action)
