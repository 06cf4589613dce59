"""Networks of the continuous-control learners: a recurrent policy shared by the agents, and centralised critics."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


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
        gru = nn.scan(nn.GRUCell, variable_broadcast="params", split_rngs={"params": False})
        # flax's default initialiser, orthogonal, calls LAPACK's QR, which deadlocks in XLA's thread pool when it is
        # batched over seeds on as many host devices as there are cores.
        carry, x = gru(self.hidden_width, recurrent_kernel_init=nn.initializers.lecun_normal())(carry, x)
        return nn.tanh(nn.Dense(self.action_dim)(nn.relu(x))), carry


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
        self, state: Float[Array, "*batch S"], joint_action: Float[Array, "*batch A U"]
    ) -> Float[Array, "*batch"]:
        """The value of every state and joint action."""
        *batch_shape, num_agents, action_dim = joint_action.shape
        x = jnp.concatenate([state, joint_action.reshape(*batch_shape, num_agents * action_dim)], axis=-1)
        for width in self.widths:
            x = nn.Dense(width)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.layer_norm else x)
        return jnp.squeeze(nn.Dense(1)(x), axis=-1)


class TwinCritic(nn.Module):
    """Two critics with independent initial weights; their parameters are stacked on a leading axis of two.

    widths: widths of the hidden layers of each.
    layer_norm: as in `Critic`.
    """

    widths: tuple[int, ...]
    layer_norm: bool = False

    @nn.compact
    def __call__(
        self, state: Float[Array, "*batch S"], joint_action: Float[Array, "*batch A U"]
    ) -> Float[Array, "2 *batch"]:
        """The values of both critics."""
        critics = nn.vmap(
            Critic,
            in_axes=None,  # pyright: ignore[reportArgumentType]  # typed as int, documented as int or None
            axis_size=2,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        return critics(self.widths, self.layer_norm)(state, joint_action)
