"""MADDPG+BC with recurrent policies: the offline base learner of the MaMuJoCo experiments (Sec. 3, App. F.2, Table 5).

Where the paper is silent we follow the OG-MARL learner it builds on (Formanek et al. 2023): critics with two hidden
layers of 128, a policy that ascends the smaller of the twin values, and both gradients taken at the parameters before
the step. Target networks start as copies of the online ones.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from coda_jax.marl.input_scale import InputScale
from coda_jax.marl.learner import Learner, RowWeights
from coda_jax.marl.networks import RecurrentPolicy, TwinCritic
from coda_jax.ranges import Count, NonNegative, Positive, PositiveShare, Ranged, Share
from coda_jax.types import Metrics, Params, PRNGKey, TaskSpec, Trajectory


@dataclasses.dataclass(frozen=True)
class MaddpgBcConfig(Ranged):
    """Settings of MADDPG+BC; the defaults are those of Table 5.

    Examples:
        >>> cj.MaddpgBcConfig(alpha_bc=10.0).discount
        0.99
    """

    discount: Share = 0.99
    """Discount factor gamma."""
    target_rate: PositiveShare = 0.005
    """Share tau of the online weights in each soft target update."""
    critic_learning_rate: Positive = 3e-4
    """Adam's step size for the critics."""
    policy_learning_rate: Positive = 3e-4
    """Adam's step size for the policy."""
    alpha_bc: NonNegative = 2.5
    """Weight of the normalised Q term beside the cloning term, as in TD3+BC; 0 is pure behaviour cloning."""
    policy_linear_width: Count = 64
    """Units of the policy's layer before the GRU."""
    policy_hidden_width: Count = 64
    """Units of the GRU."""
    critic_widths: tuple[Count, ...] = (128, 128)
    """Units of the hidden layers of each critic."""
    critic_layer_norm: bool = False
    """Whether to normalise the critics' hidden layers."""
    actor_teammates: Literal["data", "current"] = "data"
    """Teammates' actions in the actor's Q term: those in the data (best response under data, Eq. 6), or the current
    policies' (the joint-action actor, not in the paper)."""


@chex.dataclass(frozen=True)
class MaddpgBcState:
    """What MADDPG+BC learns; the twin critics are stacked on a leading axis of two, `inputs` stays as it is."""

    inputs: InputScale
    policy: Params
    critics: Params
    target_policy: Params
    target_critics: Params
    policy_optimizer: optax.OptState
    critic_optimizer: optax.OptState


def td_targets(
    reward: Float[Array, "H *batch"],
    terminal: Float[Array, "H *batch"],
    next_q: Float[Array, "successors *batch"],
    discount: Share,
) -> tuple[Float[Array, "H *batch"], Float[Array, "H *batch"]]:
    """One-step targets r_t + gamma (1 - terminal_t) Q'(s_{t+1}, mu'(o_{t+1})), and which of them count, as 1 and 0.

    `next_q[t]` is the target value at token t + 1, so there are H - 1 of them. Only a true end stops bootstrapping. The
    last token has no successor in its window: its target counts where it is a true end, which in a recorded window is
    always the last token. A window of one token is a one-step game, whose target is its reward.
    """
    last = jnp.zeros_like(reward[:1])
    target = reward + discount * (1.0 - terminal) * jnp.concatenate([next_q, last])
    is_known = jnp.ones_like(last) if reward.shape[0] == 1 else terminal[-1:]
    return target, jnp.concatenate([jnp.ones_like(reward[:-1]), is_known])


def brud_joint_actions(
    mu: Float[Array, "*batch A U"], action: Float[Array, "*batch A U"]
) -> Float[Array, "*batch A A U"]:
    """Eq. 6: for each agent i, on the first of the two agent axes, mu^i beside the others' actions in the data."""
    num_agents = mu.shape[-2]
    own = jnp.eye(num_agents, dtype=bool).reshape(*[1] * (mu.ndim - 2), num_agents, num_agents, 1)
    return jnp.where(own, mu[..., None, :, :], action[..., None, :, :])


def mean_over_rows(x: Float[Array, "..."], weights: Float[Array, "B"] | None, after: int) -> Float[Array, ""]:
    """The mean of x with weighted rows; 0 where no row has a weight, and the plain mean without weights.

    x:       values whose axis of rows has `after` axes behind it.
    weights: one a row.
    """
    if weights is None:
        return jnp.mean(x)
    by_row = jnp.mean(x, axis=tuple(axis for axis in range(x.ndim) if axis != x.ndim - 1 - after))
    return jnp.sum(weights * by_row) / jnp.maximum(jnp.sum(weights), 1e-8)


def policy_loss(
    q: Callable[[Float[Array, "*values S"], Float[Array, "*values A U"]], Float[Array, "*values"]],
    state: Float[Array, "*tokens S"],
    mu: Float[Array, "*tokens A U"],
    action: Float[Array, "*tokens A U"],
    alpha_bc: NonNegative,
    weights: RowWeights | None = None,
    teammates: Float[Array, "*tokens A U"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Best response under data, beside behaviour cloning: -(alpha_BC / mean|Q|) mean(Q) + mean((mu - a)^2).

    Its gradient through `mu` is Eq. 7 for all agents at once. The normaliser is a constant to the gradient: otherwise
    it would cancel that of the Q term wherever all values have one sign.

    q:      the critic, from states and joint actions to values.
    state:  the states s_t.
    mu:     the policies' actions mu^i(o_t^i).
    action: the actions in the data.
    weights: of the rows, on the last axis of tokens, in the Q term and in the cloning term; None weighs all alike.
    teammates: the teammates' actions in the Q term; those in the data by default.
    """
    teammates = action if teammates is None else teammates
    joint_actions = brud_joint_actions(mu, teammates)
    states = jnp.broadcast_to(state[..., None, :], (*joint_actions.shape[:-2], state.shape[-1]))
    value = q(states, joint_actions)
    actor, cloning = (None, None) if weights is None else (weights.actor, weights.cloning)
    mean_q = mean_over_rows(value, actor, 1)
    mean_abs_q = jnp.maximum(mean_over_rows(jnp.abs(value), actor, 1), 1e-8)  # values that are all 0 ask for nothing
    bc_loss = mean_over_rows((mu - action) ** 2, cloning, 2)
    loss = -alpha_bc / jax.lax.stop_gradient(mean_abs_q) * mean_q + bc_loss
    return loss, {"policy_loss": loss, "bc_loss": bc_loss, "policy_q": mean_q}


def maddpg_bc(task: TaskSpec, config: MaddpgBcConfig, inputs: InputScale) -> Learner:
    """MADDPG+BC on windows of `task`; its update draws nothing at random, so the key given to it does not matter.

    Args:
        task: its sizes.
        config: settings.
        inputs: the units in which networks see states and observations; they become part of the learner's state.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> learner = cj.maddpg_bc(env.spec, cj.MaddpgBcConfig(), cj.raw_inputs(env.spec))
        >>> batch = cj.sample_windows(dataset, jax.random.key(1), 32, horizon=1)
        >>> state, metrics = learner.update(learner.init(jax.random.key(2)), batch, jax.random.key(3))
        >>> sorted(metrics)
        ['bc_loss', 'critic_loss', 'data_q', 'policy_loss', 'policy_q']
    """
    policy = RecurrentPolicy(config.policy_linear_width, config.policy_hidden_width, task.action_dim)
    critics = TwinCritic(config.critic_widths, config.critic_layer_norm)
    # flax types `apply` for the case that variables are mutated too.
    apply_policy: Callable[..., Any] = policy.apply
    apply_critics: Callable[..., Any] = critics.apply
    policy_adam = optax.adam(config.policy_learning_rate)
    critic_adam = optax.adam(config.critic_learning_rate)

    def initial_carry(batch_shape: tuple[int, ...]) -> Float[Array, "*batch A N"]:
        return jnp.zeros((*batch_shape, task.num_agents, config.policy_hidden_width))

    def init(key: PRNGKey) -> MaddpgBcState:
        key_policy, key_critics = jax.random.split(key)
        obs = jnp.zeros((1, task.num_agents, task.obs_dim))
        policy_params = policy.init(key_policy, obs, initial_carry(()))
        joint_action = jnp.zeros((task.num_agents, task.action_dim))
        critic_params = critics.init(key_critics, jnp.zeros(task.state_dim), joint_action)
        # Copies have their own buffers, so that a caller can donate the state.
        return MaddpgBcState(
            inputs=jax.tree.map(jnp.copy, inputs),
            policy=policy_params,
            critics=critic_params,
            target_policy=jax.tree.map(jnp.copy, policy_params),
            target_critics=jax.tree.map(jnp.copy, critic_params),
            policy_optimizer=policy_adam.init(policy_params),
            critic_optimizer=critic_adam.init(critic_params),
        )

    def along_window(params: Params, obs: Float[Array, "H *batch A O"]) -> Float[Array, "H *batch A U"]:
        action, _ = apply_policy(params, obs, initial_carry(obs.shape[1:-2]))
        return action

    def smaller_q(
        params: Params, state: Float[Array, "*batch S"], joint_action: Float[Array, "*batch A U"]
    ) -> Float[Array, "*batch"]:
        return jnp.min(apply_critics(params, state, joint_action), axis=0)

    def update(
        state: MaddpgBcState, trajectory: Trajectory, key: PRNGKey, weights: RowWeights | None = None
    ) -> tuple[MaddpgBcState, Metrics]:
        del key
        scaled = dataclasses.replace(
            trajectory, state=state.inputs.state(trajectory.state), obs=state.inputs.obs(trajectory.obs)
        )
        window = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), scaled)  # [H, B, ...]

        target_action = along_window(state.target_policy, window.obs)
        next_q = smaller_q(state.target_critics, window.state[1:], target_action[1:])
        target, counts = td_targets(window.reward, window.terminal, next_q, config.discount)

        def critic_loss(params: Params) -> tuple[Float[Array, ""], Metrics]:
            q = apply_critics(params, window.state, window.action)
            weighted = counts if weights is None else counts * weights.critic[None]
            loss = 0.5 * jnp.sum(weighted * jnp.mean((q - target[None]) ** 2, axis=0)) / jnp.sum(weighted)
            return loss, {"critic_loss": loss, "data_q": jnp.mean(q)}

        def loss_of_policy(params: Params) -> tuple[Float[Array, ""], Metrics]:
            # All H tokens: neither term needs a successor.
            mu = along_window(params, window.obs)
            q = functools.partial(smaller_q, state.critics)
            teammates = jax.lax.stop_gradient(mu) if config.actor_teammates == "current" else None
            return policy_loss(q, window.state, mu, window.action, config.alpha_bc, weights, teammates)

        critic_grad, critic_metrics = jax.grad(critic_loss, has_aux=True)(state.critics)
        policy_grad, policy_metrics = jax.grad(loss_of_policy, has_aux=True)(state.policy)
        critic_step, critic_optimizer = critic_adam.update(critic_grad, state.critic_optimizer)
        policy_step, policy_optimizer = policy_adam.update(policy_grad, state.policy_optimizer)
        critic_params = optax.apply_updates(state.critics, critic_step)
        policy_params = optax.apply_updates(state.policy, policy_step)
        next_state = MaddpgBcState(
            inputs=state.inputs,
            policy=policy_params,
            critics=critic_params,
            target_policy=optax.incremental_update(policy_params, state.target_policy, config.target_rate),
            target_critics=optax.incremental_update(critic_params, state.target_critics, config.target_rate),
            policy_optimizer=policy_optimizer,
            critic_optimizer=critic_optimizer,
        )
        return next_state, critic_metrics | policy_metrics

    def act(
        state: MaddpgBcState, obs: Float[Array, "*batch A O"], carry: Float[Array, "*batch A N"]
    ) -> tuple[Float[Array, "*batch A U"], Float[Array, "*batch A N"]]:
        action, carry = apply_policy(state.policy, state.inputs.obs(obs)[None], carry)
        return action[0], carry

    return Learner(init=init, update=update, act=act, initial_carry=initial_carry)
