"""Offline deterministic actor-critic with recurrent policies and twin critics: the core of the learners here.

    target  = r + gamma (1 - terminal) min Q'(s', mu'(o'))
    critics descend  TD error + penalty(critics)
    policy  descends policy_loss(min Q(s, mu(o)), mu(o), a)

Learners differ in the critics' inputs (`critics.Critics`), the policy's loss and the critics' penalty. As
in OG-MARL (Formanek et al. 2023) the policy ascends the smaller of the twin values, and both gradients are taken at
the parameters before the step. Target networks start as copies of the online ones.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from coda_jax.marl.critics import Critics
from coda_jax.marl.input_scale import InputScale
from coda_jax.marl.learner import Learner, RowWeights, weighted_mean
from coda_jax.marl.networks import RecurrentPolicy
from coda_jax.ranges import Count, NonNegativeCount, Positive, PositiveShare, Ranged, Share
from coda_jax.types import Metrics, Params, PRNGKey, TaskSpec, Trajectory


@dataclasses.dataclass(frozen=True)
class ActorCriticConfig(Ranged):
    """Settings that all these learners share; the defaults are those of Table 5."""

    discount: Share = 0.99
    """Discount factor gamma."""
    target_rate: PositiveShare = 0.005
    """Share tau of the online weights in each soft target update."""
    critic_learning_rate: Positive = 3e-4
    """Adam's step size for the critics."""
    policy_learning_rate: Positive = 3e-4
    """Adam's step size for the policy."""
    decay_updates: NonNegativeCount = 0
    """Updates over which both step sizes fall to zero, by a cosine, so that the last policy does not depend on the
    last mini-batches; 0 keeps them, as in the paper."""
    policy_linear_width: Count = 64
    """Units of the policy's layer before the GRU."""
    policy_hidden_width: Count = 64
    """Units of the GRU."""
    critic_widths: tuple[Count, ...] = (128, 128)
    """Units of the hidden layers of each critic."""
    critic_layer_norm: bool = False
    """Whether to normalise the critics' hidden layers."""


@chex.dataclass(frozen=True)
class ActorCriticState:
    """State of the learner; the twin critics are stacked on a leading axis of two, `inputs` is constant."""

    inputs: InputScale
    policy: Params
    critics: Params
    target_policy: Params
    target_critics: Params
    policy_optimizer: optax.OptState
    critic_optimizer: optax.OptState


PolicyLoss = Callable[
    [Float[Array, "H B A"], Float[Array, "H B A U"], Float[Array, "H B A U"], RowWeights],
    tuple[Float[Array, ""], Metrics],
]
"""`(value, mu, action, weights [H, B]) -> (loss, metrics)`, where `value` is the smaller of each agent's twins."""

CriticPenalty = Callable[
    [Callable[..., Float[Array, "2 *tokens V"]], Float[Array, "2 H B V"], Trajectory, Float[Array, "H B A U"], PRNGKey],
    Float[Array, "H B"],
]
"""`(q, data_q, window [H, B, ...], mu, key) -> penalty` of every token, beside its TD error; `q` maps states and joint
actions to values, `data_q` are those of the window, mu is a constant. The key is consumed."""


def td_targets(
    reward: Float[Array, "H *batch"],
    terminal: Float[Array, "H *batch"],
    next_q: Float[Array, "successors *batch"],
    discount: float,
) -> tuple[Float[Array, "H *batch"], Float[Array, "H *batch"]]:
    """One-step targets r_t + gamma (1 - terminal_t) Q'(s_{t+1}, mu'(o_{t+1})), and their weights.

    `next_q[t]` is the target value at token t + 1, so there are H - 1 of them. Only a true end stops bootstrapping. The
    last token has no successor in its window: its target counts where it is a true end, which in a recorded window is
    always the last token. Of the windows of an episode one has its true end, while a step in the middle is followed by
    another in H - 1 of them; so true ends weigh H - 1 there and, over all windows, as much as other steps. A window of
    one token is a one-step game, whose target is its reward.
    """
    num_known = len(next_q)
    last = jnp.zeros_like(reward[:1])
    target = reward + discount * (1.0 - terminal) * jnp.concatenate([next_q, last])
    weight_of_last = num_known * terminal[-1:] if num_known else jnp.ones_like(last)
    return target, jnp.concatenate([jnp.ones_like(reward[:-1]), weight_of_last])


def actor_critic(
    task: TaskSpec,
    config: ActorCriticConfig,
    inputs: InputScale,
    critics: Critics,
    policy_loss: PolicyLoss,
    penalty: CriticPenalty | None = None,
) -> Learner:
    """A learner on windows of `task`; its update uses its key for the penalty only.

    Args:
        task: its sizes.
        config: settings.
        inputs: the units in which networks see states and observations; they become part of the learner's state.
        critics: the values to learn.
        policy_loss: the loss of the policy.
        penalty: a term of the critics' loss beside the TD error, weighted by the same rows.
    """
    policy = RecurrentPolicy(config.policy_linear_width, config.policy_hidden_width, task.action_dim)
    apply_policy: Callable[..., Any] = policy.apply  # flax types it for the case that variables are mutated too
    policy_adam, critic_adam = (
        optax.adam(optax.cosine_decay_schedule(rate, config.decay_updates) if config.decay_updates else rate)
        for rate in (config.policy_learning_rate, config.critic_learning_rate)
    )

    def initial_carry(batch_shape: tuple[int, ...]) -> Float[Array, "*batch A N"]:
        return jnp.zeros((*batch_shape, task.num_agents, config.policy_hidden_width))

    @jax.jit  # where a caller does not compile it, a hundred small programs become one
    def init(key: PRNGKey) -> ActorCriticState:
        key_policy, key_critics = jax.random.split(key)
        obs = jnp.zeros((1, task.num_agents, task.obs_dim))
        policy_params = policy.init(key_policy, obs, initial_carry(()))
        critic_params = critics.init(key_critics)
        # Copies have their own buffers, so that a caller can donate the state.
        return ActorCriticState(
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

    def critic_gradient(
        state: ActorCriticState, window: Trajectory, mu: Array, weights: RowWeights, key: PRNGKey
    ) -> tuple[Params, Metrics]:
        target_action = along_window(state.target_policy, window.obs)
        next_q = jnp.min(critics.of_joint(state.target_critics, window.state[1:], target_action[1:]), axis=0)
        reward, terminal = (
            jnp.broadcast_to(x[..., None], (*x.shape, next_q.shape[-1])) for x in (window.reward, window.terminal)
        )
        target, target_weights = td_targets(reward, terminal, next_q, config.discount)
        row_weights = target_weights[..., 0] * weights.critic

        def loss(params: Params) -> tuple[Float[Array, ""], Metrics]:
            q = critics.of_joint(params, window.state, window.action)
            td_loss = weighted_mean(0.5 * jnp.mean((q - target[None]) ** 2, axis=(0, -1)), row_weights)
            metrics = {"critic_loss": td_loss, "data_q": weighted_mean(jnp.mean(q, axis=(0, -1)), weights.critic)}
            if penalty is None:
                return td_loss, metrics
            values = penalty(lambda s, a: critics.of_joint(params, s, a), q, window, mu, key)
            mean_penalty = weighted_mean(values, row_weights)
            return td_loss + mean_penalty, metrics | {"critic_penalty": mean_penalty}

        return jax.grad(loss, has_aux=True)(state.critics)

    def mu_gradient(
        state: ActorCriticState, window: Trajectory, mu: Array, weights: RowWeights
    ) -> tuple[Array, Metrics]:
        """Of the policy's loss on all H tokens: none of its terms needs a successor."""

        def loss(mu: Array) -> tuple[Float[Array, ""], Metrics]:
            value = jnp.min(critics.of_agents(state.critics, window.state, mu, window.action), axis=0)
            return policy_loss(value, mu, window.action, weights)

        return jax.grad(loss, has_aux=True)(mu)

    def update(
        state: ActorCriticState, trajectory: Trajectory, weights: RowWeights, key: PRNGKey
    ) -> tuple[ActorCriticState, Metrics]:
        scaled = dataclasses.replace(
            trajectory, state=state.inputs.state(trajectory.state), obs=state.inputs.obs(trajectory.obs)
        )
        window = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), scaled)  # [H, B, ...]
        token_weights = jax.tree.map(lambda w: jnp.broadcast_to(w[None], window.reward.shape), weights)

        mu, pull_back = jax.vjp(lambda params: along_window(params, window.obs), state.policy)
        critic_grad, critic_metrics = critic_gradient(state, window, mu, token_weights, key)
        mu_grad, policy_metrics = mu_gradient(state, window, mu, token_weights)
        (policy_grad,) = pull_back(mu_grad)

        critic_step, critic_optimizer = critic_adam.update(critic_grad, state.critic_optimizer)
        policy_step, policy_optimizer = policy_adam.update(policy_grad, state.policy_optimizer)
        critic_params = optax.apply_updates(state.critics, critic_step)
        policy_params = optax.apply_updates(state.policy, policy_step)
        next_state = ActorCriticState(
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
        state: ActorCriticState, obs: Float[Array, "*batch A O"], carry: Float[Array, "*batch A N"]
    ) -> tuple[Float[Array, "*batch A U"], Float[Array, "*batch A N"]]:
        action, carry = apply_policy(state.policy, state.inputs.obs(obs)[None], carry)
        return action[0], carry

    def value(
        state: ActorCriticState, global_state: Float[Array, "*batch S"], action: Float[Array, "*batch A U"]
    ) -> Float[Array, "*batch"]:
        twins = critics.of_joint(state.critics, state.inputs.state(global_state), action)
        return jnp.mean(jnp.min(twins, axis=0), axis=-1)

    return Learner(init=init, update=update, act=act, initial_carry=initial_carry, value=value)
