"""MADDPG for one-step games without observations: one trainable action per agent (Sec. 6.1, App. C.1 and Table 4)."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import chex
import jax
import jax.numpy as jnp
import optax
from annotated_types import Interval
from jaxtyping import Array, Float

from coda_jax.marl.critics import brud_joint_actions
from coda_jax.marl.learner import Learner, RowWeights, weighted_mean
from coda_jax.marl.networks import Critic
from coda_jax.ranges import Count, Positive, Ranged
from coda_jax.types import Metrics, Params, PRNGKey, TaskSpec, Trajectory

JointValue = Callable[[Float[Array, "*batch A U"]], Float[Array, "*batch"]]
"""A centralised critic Q(a) of a game without state."""


@dataclasses.dataclass(frozen=True)
class StatelessMaddpgConfig(Ranged):
    """Settings of the learner; the defaults are those of Table 4."""

    start: tuple[Annotated[float, Interval(ge=-1.0, le=1.0)], ...] = (-0.64, 0.65)
    """Initial actions, one per agent."""
    learning_rate: Positive = 0.1
    """Step size of gradient ascent."""
    max_grad_norm: Positive = 1.0
    """Maximum norm of the joint gradient of all agents (clipping keeps its direction)."""


@chex.dataclass(frozen=True)
class StatelessMaddpgState:
    """State of the learner.

    theta:     `[A, U]` the joint policy, one action per agent.
    optimizer: the optimiser's state.
    """

    theta: Float[Array, "*batch A U"]
    optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class CriticConfig(Ranged):
    """Settings of the fit of a critic to recorded rewards, for games with an unknown reward function."""

    widths: tuple[Count, ...] = (64, 64)
    """Widths of the hidden layers."""
    num_updates: Count = 3000
    """Steps of Adam, with cosine decay of the step size to zero."""
    batch_size: Count = 256
    """Recorded joint actions per mini-batch."""
    learning_rate: Positive = 3e-3
    """Peak step size of Adam."""


def brud_gradient(
    critic: JointValue, theta: Float[Array, "A U"], action: Float[Array, "*batch A U"], weights: Float[Array, "*batch"]
) -> Float[Array, "A U"]:
    """Eq. 16-17: the batch mean of each agent's gradient at its theta^i, with the other agents' actions from the batch.

    The mean is weighted by `weights`. If all batch actions equal theta, it is the true gradient of Q.
    """

    def objective(theta: Float[Array, "A U"]) -> Float[Array, ""]:
        # Each of the A joint actions contains one agent's theta, so the gradient of the sum separates the agents.
        mu = jnp.broadcast_to(theta, action.shape)
        return weighted_mean(jnp.sum(critic(brud_joint_actions(mu, action)), axis=-1), weights)

    return jax.grad(objective)(theta)


def stateless_maddpg(task: TaskSpec, critic: JointValue, config: StatelessMaddpgConfig) -> Learner:
    """MADDPG on a one-step game with a given critic: the known reward function, or a critic of `fit_critic`.

    The update is a step of gradient ascent along `brud_gradient`, projected onto [-1, 1]; `update` and `init` are
    deterministic. Metrics: the components of the gradient before clipping, `gradient_0` for the first agent etc.

    Raises:
      ValueError: the start is not one action in [-1, 1] per agent.
    """
    if len(config.start) != task.num_agents or not all(abs(action) <= 1.0 for action in config.start):
        raise ValueError(f"start is {config.start}: expected {task.num_agents} actions in [-1, 1]")
    ascent = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.scale(config.learning_rate))

    def init(key: PRNGKey) -> StatelessMaddpgState:
        del key
        theta = jnp.broadcast_to(jnp.asarray(config.start, jnp.float32)[:, None], (task.num_agents, task.action_dim))
        return StatelessMaddpgState(theta=theta, optimizer=ascent.init(theta))

    def update(
        state: StatelessMaddpgState, trajectory: Trajectory, weights: RowWeights, key: PRNGKey
    ) -> tuple[StatelessMaddpgState, Metrics]:
        del key
        gradient = brud_gradient(critic, state.theta, trajectory.action[:, 0], weights.actor)
        step, optimizer = ascent.update(gradient, state.optimizer)
        theta = jnp.clip(state.theta + jnp.asarray(step), -1.0, 1.0)
        metrics = {f"gradient_{agent}": jnp.sum(gradient[agent]) for agent in range(task.num_agents)}
        return StatelessMaddpgState(theta=theta, optimizer=optimizer), metrics

    def act(
        state: StatelessMaddpgState, obs: Float[Array, "*batch A O"], carry: tuple[()]
    ) -> tuple[Float[Array, "*batch A U"], tuple[()]]:
        return jnp.broadcast_to(state.theta, (*obs.shape[:-1], task.action_dim)), carry

    return Learner(init=init, update=update, act=act, initial_carry=lambda batch_shape: ())


def critic_value(
    config: CriticConfig, params: Params, joint_action: Float[Array, "*batch A U"]
) -> Float[Array, "*batch"]:
    """Q(a) of a fitted critic."""
    apply: Callable[..., Any] = Critic(config.widths).apply
    return apply(params, jnp.zeros((*joint_action.shape[:-2], 0)), joint_action)


def fit_critic(config: CriticConfig, dataset: Trajectory, key: PRNGKey) -> tuple[Params, Float[Array, ""]]:
    """Regresses the rewards of recorded one-step trajectories `[N, 1, ...]` on their joint actions.

    One-step episodes need no bootstrapping, so this is fitted Q evaluation. The key is consumed.

    Returns:
      The parameters of the critic for `critic_value`, and its root mean squared error on the dataset.
    """
    key_init, key_fit = jax.random.split(key)
    action, reward = dataset.action[:, 0], dataset.reward[:, 0]
    params = Critic(config.widths).init(key_init, jnp.zeros(0), action[0])
    adam = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.num_updates))

    def squared_error(params: Params, rows: Array | slice) -> Float[Array, ""]:
        return jnp.mean((critic_value(config, params, action[rows]) - reward[rows]) ** 2)

    def body(carry: tuple[Params, optax.OptState], key: PRNGKey) -> tuple[tuple[Params, optax.OptState], None]:
        params, optimizer = carry
        rows = jax.random.randint(key, (config.batch_size,), 0, reward.shape[0])
        step, optimizer = adam.update(jax.grad(squared_error)(params, rows), optimizer)
        return (optax.apply_updates(params, step), optimizer), None

    (params, _), _ = jax.lax.scan(body, (params, adam.init(params)), jax.random.split(key_fit, config.num_updates))
    return params, jnp.sqrt(squared_error(params, slice(None)))
