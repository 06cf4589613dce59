"""A probabilistic ensemble of one-step models (Chua et al. 2018).

Each member is a network that predicts, from a state and a joint action, a Gaussian over the change of the state and the
reward, and the probability of a true end. Members differ in their first weights and mini-batches. Inputs and targets
are standardised by the dataset.

In recorded episodes rewards can go with features that do not cause them: teams that slow down at their goals make small
actions look rewarding. Where it is known what the reward depends on, `DynamicsConfig.reward_inputs` names it, and a
second network in each member predicts the reward from that alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from annotated_types import Interval
from jaxtyping import Array, Float, Int

from coda_jax.data.dataset import Dataset, sample_index
from coda_jax.ranges import Count, NonNegativeCount, Positive, Ranged, RangeError, Share
from coda_jax.types import Params, PRNGKey, TaskSpec, Trajectory


@dataclasses.dataclass(frozen=True)
class DynamicsConfig(Ranged):
    """Sizes and fit of the ensemble; the paper has no such model, so all values are our choice.

    Examples:
        >>> cj.DynamicsConfig(num_members=5).widths
        (256, 256, 256)
    """

    num_members: Count = 3
    """Networks."""
    widths: tuple[Count, ...] = (256, 256, 256)
    """Widths of the hidden layers."""
    num_updates: Annotated[int, Interval(ge=2, lt=2**31)] = 6_000
    """Mini-batches a member."""
    batch_size: Count = 256
    """Steps a mini-batch."""
    learning_rate: Positive = 1e-3
    """The largest learning rate of Adam; warm-up over 2 % of the updates, then a cosine to zero."""
    variance_weight: Share = 0.5
    """Exponent beta of the weight sigma^(2 beta) of each feature's likelihood (Seitzer et al. 2022): 0 is the
    likelihood itself, which neglects features that are hard to predict; 1 fits the mean by least squares."""
    reward_inputs: tuple[NonNegativeCount, ...] = ()
    """What the reward depends on, where that is known: indices into the next state followed by the joint action. By
    default the network that predicts the next state also predicts the reward."""


@chex.dataclass(frozen=True)
class Dynamics:
    """A fitted ensemble.

    params:        weights, with a leading axis for the members.
    input_mean, input_std:   `[S + A*U]` of states and joint actions.
    target_mean, target_std: `[S + 1]` of the change of the state and of the reward; a change that is constant has
                             standard deviation 0 and is predicted exactly.
    reward_params:           weights of the rewards' own networks; empty without `reward_inputs`.
    """

    params: Params
    input_mean: Float[Array, "*batch I"]
    input_std: Float[Array, "*batch I"]
    target_mean: Float[Array, "*batch K"]
    target_std: Float[Array, "*batch K"]
    reward_params: Params = dataclasses.field(default_factory=dict)


class Prediction(NamedTuple):
    """The step that the ensemble predicts.

    state:        `[*batch, S]` mean next state over the members, in the environment's units.
    reward:       `[*batch]` mean reward.
    terminal:     `[*batch]` mean probability of a true end.
    std:          `[*batch, S + 1]` standard deviation of next state and reward within a member (root mean square).
    disagreement: `[*batch, S + 1]` standard deviation of the means between members.
    """

    state: Float[Array, "*batch S"]
    reward: Float[Array, "*batch"]
    terminal: Float[Array, "*batch"]
    std: Float[Array, "*batch K"]
    disagreement: Float[Array, "*batch K"]


class DynamicsModel(NamedTuple):
    """Pure functions of an ensemble.

    fit:     `(dataset, key) -> Dynamics`; the key is consumed. Windows must have at least two steps.
    predict: `(dynamics, state [*batch, S], action [*batch, A, U]) -> Prediction`.
    """

    fit: Callable[[Dataset, PRNGKey], Dynamics]
    predict: Callable[[Dynamics, Float[Array, "*batch S"], Float[Array, "*batch A U"]], Prediction]


class _Member(nn.Module):
    widths: tuple[int, ...]
    num_targets: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> tuple[Array, Array, Array]:
        """The means and log standard deviations of the standardised targets, and the logit of an end."""
        for width in self.widths:
            x = nn.silu(nn.Dense(width)(x))
        out = nn.Dense(2 * self.num_targets + 1)(x)
        mean, log_std, logit = jnp.split(out, [self.num_targets, 2 * self.num_targets], axis=-1)
        return mean, -4.0 + 5.0 * nn.tanh(log_std), logit[..., 0]  # e^-9 to e of a target's own standard deviation


def make_dynamics(spec: TaskSpec, config: DynamicsConfig = DynamicsConfig()) -> DynamicsModel:
    """Builds the ensemble of a task.

    Raises:
        RangeError: an index of `reward_inputs` is beyond the state and the actions.

    Examples:
        >>> from coda_jax.envs.coordination import same_side
        >>> env = same_side()
        >>> from numpy import array, zeros
        >>> episodes = cj.episodes_from_arrays(
        ...     state=zeros((8, 3)), obs=zeros((8, 2, 2)), action=zeros((8, 2, 1)), reward=zeros(8),
        ...     terminal=zeros(8), truncation=array([0, 0, 0, 1, 0, 0, 0, 1]),
        ... )
        >>> dataset = cj.make_dataset(episodes, 3)
        >>> model = cj.make_dynamics(env.spec, cj.DynamicsConfig(widths=(8,), num_updates=2, batch_size=4))
        >>> dynamics = model.fit(dataset, jax.random.key(0))
        >>> model.predict(dynamics, jnp.zeros((5, 3)), jnp.zeros((5, 2, 1))).state.shape
        (5, 3)
    """
    num_inputs = _num_inputs(spec)
    if max(config.reward_inputs, default=0) >= num_inputs:
        words = f"indices of the {num_inputs} features of state and joint action are below {num_inputs}"
        raise RangeError("reward_inputs", config.reward_inputs, words)
    network, reward_network = _networks(spec, config)
    reward_inputs = jnp.array(config.reward_inputs, jnp.int32)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(1, config.num_updates // 50), config.num_updates
    )
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def apply(params: Params, x: Array) -> tuple[Array, Array, Array]:
        return cast(tuple[Array, Array, Array], network.apply(params, x))

    def with_reward(params: Params, x: Array, mean: Array, log_std: Array) -> tuple[Array, Array]:
        """Appends the reward's mean and log standard deviation; `x` are inputs of a next state and the action to it."""
        if not config.reward_inputs:
            return mean, log_std
        reward_mean, reward_log_std, _ = cast(
            tuple[Array, Array, Array], reward_network.apply(params, x[..., reward_inputs])
        )
        return jnp.concatenate([mean, reward_mean], axis=-1), jnp.concatenate([log_std, reward_log_std], axis=-1)

    def inputs(dynamics: Dynamics, state: Array, action: Array) -> Array:
        x = jnp.concatenate([state, action.reshape(*action.shape[:-2], -1)], axis=-1)
        mean, std = (v.reshape(*[1] * (x.ndim - 1), -1) for v in (dynamics.input_mean, dynamics.input_std))
        return (x - mean) / std

    def loss(
        params: tuple[Params, Params],
        dynamics: Dynamics,
        dataset: Dataset,
        now: Int[Array, "B"],
        last: Int[Array, "B"],
    ) -> Array:
        steps, (step_params, reward_params) = dataset.steps, params
        mean, log_std, _ = apply(step_params, inputs(dynamics, steps.state[now], steps.action[now]))
        outcome = inputs(dynamics, steps.state[now + 1], steps.action[now])
        mean, log_std = with_reward(reward_params, outcome, mean, log_std)
        error = standardised(dynamics, targets(steps, now)) - mean
        # The weight of beta-NLL is a constant of the gradient.
        weight = jax.lax.stop_gradient(jnp.exp(2.0 * config.variance_weight * log_std))
        likelihood = weight * (0.5 * jnp.square(error * jnp.exp(-log_std)) + log_std)
        # The last step of a window may end an episode; it has no next state.
        _, _, logit = apply(step_params, inputs(dynamics, steps.state[last], steps.action[last]))
        return jnp.mean(likelihood) + jnp.mean(optax.sigmoid_binary_cross_entropy(logit, steps.terminal[last]))

    def fit_member(dynamics: Dynamics, dataset: Dataset, key: PRNGKey) -> tuple[Params, Params]:
        key_init, key_fit = jax.random.split(key)
        params = _init_member(spec, config, key_init)

        def update(carry: tuple[Any, optax.OptState], step: Array) -> tuple[tuple[Any, optax.OptState], None]:
            params, memory = carry
            now, last = sample_steps(dataset, jax.random.fold_in(key_fit, step), config.batch_size)
            changes, memory = optimiser.update(jax.grad(loss)(params, dynamics, dataset, now, last), memory, params)
            return (optax.apply_updates(params, changes), memory), None

        (params, _), _ = jax.lax.scan(update, (params, optimiser.init(params)), jnp.arange(config.num_updates))
        return params

    def fit(dataset: Dataset, key: PRNGKey) -> Dynamics:
        if len(dataset.offsets) < 2:
            raise ValueError("a one-step model needs windows of at least two steps")
        key_scale, key_members = jax.random.split(key)
        dynamics = _scales(dataset, key_scale)
        params, reward_params = jax.vmap(lambda key: fit_member(dynamics, dataset, key))(
            jax.random.split(key_members, config.num_members)
        )
        return dataclasses.replace(dynamics, params=params, reward_params=reward_params)

    def predict(dynamics: Dynamics, state: Float[Array, "*batch S"], action: Float[Array, "*batch A U"]) -> Prediction:
        target_mean, target_std = (
            v.reshape(*[1] * (state.ndim - 1), -1) for v in (dynamics.target_mean, dynamics.target_std)
        )
        x = inputs(dynamics, state, action)
        mean, log_std, logit = jax.vmap(apply, in_axes=(0, None))(dynamics.params, x)
        change = jnp.mean(mean[..., : spec.state_dim], axis=0)
        following = state + target_mean[..., :-1] + target_std[..., :-1] * change
        outcome = inputs(dynamics, following, action)
        mean, log_std = jax.vmap(with_reward, in_axes=(0, None, 0, 0))(dynamics.reward_params, outcome, mean, log_std)
        return Prediction(
            state=following,
            reward=target_mean[..., -1] + target_std[..., -1] * jnp.mean(mean[..., -1], axis=0),
            terminal=jnp.mean(nn.sigmoid(logit), axis=0),
            std=target_std * jnp.sqrt(jnp.mean(jnp.exp(2.0 * log_std), axis=0)),
            disagreement=target_std * jnp.std(mean, axis=0),
        )

    return DynamicsModel(fit, predict)


def init_dynamics(spec: TaskSpec, config: DynamicsConfig, key: PRNGKey) -> Dynamics:
    """An ensemble with first weights and without scales of its own: zero mean, unit standard deviation."""
    num_inputs, num_targets = _num_inputs(spec), spec.state_dim + 1
    params, reward_params = jax.vmap(lambda key: _init_member(spec, config, key))(
        jax.random.split(key, config.num_members)
    )
    return Dynamics(
        params=params,
        input_mean=jnp.zeros(num_inputs),
        input_std=jnp.ones(num_inputs),
        target_mean=jnp.zeros(num_targets),
        target_std=jnp.ones(num_targets),
        reward_params=reward_params,
    )


def _num_inputs(spec: TaskSpec) -> int:
    """The number of features of a state and a joint action."""
    return spec.state_dim + spec.num_agents * spec.action_dim


def _networks(spec: TaskSpec, config: DynamicsConfig) -> tuple[_Member, _Member]:
    """A member's network of the next state and, without `reward_inputs`, the reward; and that of the reward alone."""
    return _Member(config.widths, spec.state_dim + (not config.reward_inputs)), _Member(config.widths, 1)


def _init_member(spec: TaskSpec, config: DynamicsConfig, key: PRNGKey) -> tuple[Params, Params]:
    """First weights of a member's networks; those of the reward are empty where it has none."""
    network, reward_network = _networks(spec, config)
    first = jnp.zeros((1, _num_inputs(spec)))
    if not config.reward_inputs:
        return network.init(key, first), {}
    key_step, key_reward = jax.random.split(key)
    return (
        network.init(key_step, first),
        reward_network.init(key_reward, jnp.zeros((1, len(config.reward_inputs)))),
    )


def sample_steps(dataset: Dataset, key: PRNGKey, num: int) -> tuple[Int[Array, "B"], Int[Array, "B"]]:
    """Indices of steps that another of their window follows, and of any steps. The key is consumed.

    Windows of the dataset are drawn, then a step of each, so that all steps are reached but for those of episodes
    shorter than a window.
    """
    key_windows, key_now, key_last = jax.random.split(key, 3)
    horizon = len(dataset.offsets)
    windows = sample_index(dataset, key_windows, num, horizon)
    now = jax.random.randint(key_now, (num,), 0, horizon - 1)
    last = jax.random.randint(key_last, (num,), 0, horizon)
    return jnp.take_along_axis(windows, now[:, None], 1)[:, 0], jnp.take_along_axis(windows, last[:, None], 1)[:, 0]


def targets(steps: Trajectory, now: Int[Array, "B"]) -> Float[Array, "B K"]:
    """The change of the state and the reward of steps, in the environment's units."""
    return jnp.concatenate([steps.state[now + 1] - steps.state[now], steps.reward[now][:, None]], axis=-1)


def standardised(dynamics: Dynamics, target: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """Targets in standard deviations; 0 where they are constant."""
    std = jnp.where(dynamics.target_std > 0.0, dynamics.target_std, jnp.inf)
    return (target - dynamics.target_mean[None]) / std[None]


def _scales(dataset: Dataset, key: PRNGKey) -> Dynamics:
    """An ensemble without weights, its scales those of a large sample of steps."""
    now, _ = sample_steps(dataset, key, 50_000)
    steps = dataset.steps
    x = jnp.concatenate([steps.state[now], steps.action[now].reshape(len(now), -1)], axis=-1)
    y = targets(steps, now)
    input_std, target_std = jnp.std(x, axis=0), jnp.std(y, axis=0)
    # Rounding leaves a tiny spread of changes that are constant.
    is_constant = target_std <= 1e-6 * (jnp.max(jnp.abs(steps.state), initial=1.0))
    return Dynamics(
        params=(),
        input_mean=jnp.mean(x, axis=0),
        input_std=jnp.where(input_std > 1e-6, input_std, 1.0),
        target_mean=jnp.mean(y, axis=0),
        target_std=jnp.where(is_constant, 0.0, target_std),
    )
