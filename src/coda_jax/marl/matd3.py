"""Online MATD3 (Ackermann et al., 2019), which trains the behaviour teams.

TD3 (Fujimoto et al., 2018) with one policy for all agents, conditioned on a one-hot agent id, and twin critics of the
global state and the joint action. Simulation, replay buffer and learning are one traced function:

    for step in range(num_steps):
        act in N environments, store N transitions
        for update in range(updates_per_step):
            critic update; every `policy_delay` updates also policy and targets
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from coda_jax.envs.base import Environment, EnvState
from coda_jax.envs.rollout import step_and_reset
from coda_jax.ranges import Count, NonNegative, NonNegativeCount, Positive, PositiveShare, Ranged, RangeError, Share
from coda_jax.types import Metrics, Params, PRNGKey, TaskSpec


@dataclasses.dataclass(frozen=True)
class Matd3Config(Ranged):
    """Settings of MATD3."""

    num_envs: Count = 16
    """Number of parallel environments."""
    updates_per_step: Count = 8
    """Critic updates per joint step of all environments."""
    policy_delay: Count = 2
    """Critic updates per policy update."""
    batch_size: Count = 256
    """Transitions per update."""
    width: Count = 128
    """Units of each of the two hidden layers of policy and critics."""
    buffer_size: Count = 500_000
    """Capacity of the replay buffer, in transitions."""
    random_steps: NonNegativeCount = 500
    """Joint steps of uniformly random actions at the start, without updates."""
    learning_rate: Positive = 5e-4
    """Adam's step size."""
    discount: Share = 0.99
    """Discount factor gamma."""
    target_rate: PositiveShare = 0.005
    """Weight of the online networks in each soft target update."""
    exploration_noise: NonNegative = 0.1
    """Standard deviation of the Gaussian noise on actions while acting."""
    target_noise: NonNegative = 0.2
    """Standard deviation of the noise on target actions."""
    target_noise_clip: NonNegative = 0.5
    """Bound on the absolute noise on target actions."""
    reward_scale: Positive = 0.1
    """Factor on the rewards in the TD target."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buffer_size % self.num_envs:
            raise RangeError("buffer_size", self.buffer_size, f"it must be a multiple of num_envs, {self.num_envs}")


class TeamPolicy(nn.Module):
    """One feed-forward policy for all agents: observation and agent id in, action in [-1, 1] out."""

    action_dim: int
    width: int

    @nn.compact
    def __call__(self, obs: Float[Array, "*batch A O"]) -> Float[Array, "*batch A U"]:
        """The actions of all agents."""
        num_agents = obs.shape[-2]
        agent_id = jnp.broadcast_to(jnp.eye(num_agents), (*obs.shape[:-1], num_agents))
        x = jnp.concatenate([agent_id, obs], axis=-1)
        x = nn.relu(nn.Dense(self.width)(x))
        x = nn.relu(nn.Dense(self.width)(x))
        return nn.tanh(nn.Dense(self.action_dim)(x))


class TeamCritic(nn.Module):
    """Twin critics of the global state and the joint action."""

    width: int

    @nn.compact
    def __call__(self, state: Float[Array, "*batch S"], action: Float[Array, "*batch A U"]) -> Float[Array, "2 *batch"]:
        """The values of both critics."""
        x = jnp.concatenate([state, action.reshape(*action.shape[:-2], -1)], axis=-1)

        def value(x: Array) -> Array:
            x = nn.relu(nn.Dense(self.width)(x))
            x = nn.relu(nn.Dense(self.width)(x))
            return nn.Dense(1)(x)[..., 0]

        return jnp.stack([value(x), value(x)])


@chex.dataclass(frozen=True)
class Transition:
    """One step of joint experience, `[*batch, ...]`, with its successor."""

    state: Float[Array, "*batch S"]
    obs: Float[Array, "*batch A O"]
    action: Float[Array, "*batch A U"]
    reward: Float[Array, "*batch"]
    terminal: Float[Array, "*batch"]
    next_state: Float[Array, "*batch S"]
    next_obs: Float[Array, "*batch A O"]


@chex.dataclass(frozen=True)
class Networks:
    """Weights of policy and critics."""

    policy: Params
    critic: Params


@chex.dataclass(frozen=True)
class Matd3State:
    """The training state of a team; `now` are the current states of the environments."""

    online: Networks
    target: Networks
    policy_optimizer: optax.OptState
    critic_optimizer: optax.OptState
    buffer: Transition
    now: EnvState
    num_steps: Int[Array, ""]
    key: PRNGKey


class Matd3(NamedTuple):
    """Online multi-agent TD3: two pure functions of a training state."""

    init: Callable[[PRNGKey], Matd3State]
    train: Callable[[Matd3State, int], tuple[Matd3State, Metrics]]
    """Runs a (static) number of joint steps of acting and learning; metrics are means over the steps."""


def team_policy(spec: TaskSpec, width: int) -> TeamPolicy:
    """The policy network of a task's behaviour teams."""
    return TeamPolicy(action_dim=spec.action_dim, width=width)


def matd3(env: Environment, config: Matd3Config) -> Matd3:
    """Builds MATD3 for an environment."""
    spec = env.spec
    policy = team_policy(spec, config.width)
    critic = TeamCritic(width=config.width)
    apply_policy = cast(Callable[..., Array], policy.apply)
    apply_critic = cast(Callable[..., Array], critic.apply)
    optimizer = optax.adam(config.learning_rate)
    joint_shape = (config.num_envs, spec.num_agents, spec.action_dim)

    def init(key: PRNGKey) -> Matd3State:
        key_policy, key_critic, key_start, key_train = jax.random.split(key, 4)
        now = jax.vmap(env.reset)(jax.random.split(key_start, config.num_envs))
        action = jnp.zeros(joint_shape)
        online = Networks(policy=policy.init(key_policy, now.obs), critic=critic.init(key_critic, now.state, action))
        transition = Transition(
            state=now.state,
            obs=now.obs,
            action=action,
            reward=now.reward,
            terminal=now.reward,
            next_state=now.state,
            next_obs=now.obs,
        )
        return Matd3State(
            online=online,
            target=jax.tree.map(jnp.copy, online),
            policy_optimizer=optimizer.init(online.policy),
            critic_optimizer=optimizer.init(online.critic),
            buffer=jax.tree.map(lambda x: jnp.zeros((config.buffer_size, *x.shape[1:]), x.dtype), transition),
            now=now,
            num_steps=jnp.zeros((), jnp.int32),
            key=key_train,
        )

    def critic_loss(params: Params, target: Networks, batch: Transition, key: PRNGKey) -> Array:
        noise = config.target_noise * jax.random.normal(key, batch.action.shape)
        noise = jnp.clip(noise, -config.target_noise_clip, config.target_noise_clip)
        next_action = jnp.clip(apply_policy(target.policy, batch.next_obs) + noise, -1.0, 1.0)
        next_value = apply_critic(target.critic, batch.next_state, next_action).min(axis=0)
        td_target = config.reward_scale * batch.reward + config.discount * (1.0 - batch.terminal) * next_value
        value = apply_critic(params, batch.state, batch.action)
        return jnp.mean(jnp.square(value - td_target[None]))

    def policy_loss(params: Params, critic_params: Params, batch: Transition) -> Array:
        action = apply_policy(params, batch.obs)
        return -jnp.mean(apply_critic(critic_params, batch.state, action)[0])

    def update_critic(carry: Matd3State, key: PRNGKey) -> tuple[Matd3State, tuple[Array, Transition]]:
        key_batch, key_noise = jax.random.split(key)
        filled = jnp.minimum(carry.num_steps * config.num_envs, config.buffer_size)
        rows = jax.random.randint(key_batch, (config.batch_size,), 0, filled)
        batch = jax.tree.map(lambda x: x[rows], carry.buffer)
        loss, gradient = jax.value_and_grad(critic_loss)(carry.online.critic, carry.target, batch, key_noise)
        step, critic_optimizer = optimizer.update(gradient, carry.critic_optimizer)
        online = dataclasses.replace(carry.online, critic=optax.apply_updates(carry.online.critic, step))
        return dataclasses.replace(carry, online=online, critic_optimizer=critic_optimizer), (loss, batch)

    def update(carry: Matd3State, key: PRNGKey) -> tuple[Matd3State, Array]:
        """`policy_delay` critic updates, then one of the policy and the targets, on the last batch."""
        for key_critic in jax.random.split(key, config.policy_delay):
            carry, (loss, batch) = update_critic(carry, key_critic)
        gradient = jax.grad(policy_loss)(carry.online.policy, carry.online.critic, batch)
        step, policy_optimizer = optimizer.update(gradient, carry.policy_optimizer)
        online = dataclasses.replace(carry.online, policy=optax.apply_updates(carry.online.policy, step))
        target = optax.incremental_update(cast(Params, online), cast(Params, carry.target), config.target_rate)
        return dataclasses.replace(carry, online=online, target=target, policy_optimizer=policy_optimizer), loss

    def act_and_store(carry: Matd3State, key: PRNGKey) -> tuple[Matd3State, Array]:
        key_random, key_noise, key_reset = jax.random.split(key, 3)
        noisy = apply_policy(carry.online.policy, carry.now.obs)
        noisy = noisy + config.exploration_noise * jax.random.normal(key_noise, joint_shape)
        random = jax.random.uniform(key_random, joint_shape, minval=-1.0, maxval=1.0)
        action = jnp.where(carry.num_steps < config.random_steps, random, jnp.clip(noisy, -1.0, 1.0))
        stepped, state_after_reset = step_and_reset(env, carry.now, action, key_reset)
        transition = Transition(
            state=carry.now.state,
            obs=carry.now.obs,
            action=action,
            reward=stepped.reward,
            terminal=stepped.terminal.astype(jnp.float32),
            next_state=stepped.state,
            next_obs=stepped.obs,
        )
        row = (carry.num_steps * config.num_envs) % config.buffer_size
        buffer = jax.tree.map(
            lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, row, axis=0), carry.buffer, transition
        )
        carry = dataclasses.replace(carry, buffer=buffer, now=state_after_reset, num_steps=carry.num_steps + 1)
        return carry, jnp.mean(stepped.reward)

    def train(state: Matd3State, num_steps: int) -> tuple[Matd3State, Metrics]:
        def body(carry: Matd3State, _: None) -> tuple[Matd3State, Metrics]:
            key, key_act, key_update = jax.random.split(carry.key, 3)
            carry, reward = act_and_store(dataclasses.replace(carry, key=key), key_act)
            # A loop bound instead of a `cond`, so that no updates are computed before `random_steps`.
            num_updates = jnp.where(carry.num_steps > config.random_steps, config.updates_per_step, 0)
            num_updates = num_updates // config.policy_delay

            def learn(k: Array, inner: tuple[Matd3State, Array]) -> tuple[Matd3State, Array]:
                return update(inner[0], jax.random.fold_in(key_update, k))

            carry, loss = jax.lax.fori_loop(0, num_updates, learn, (carry, jnp.zeros(())))
            return carry, {"reward": reward, "critic_loss": loss}

        state, metrics = jax.lax.scan(body, state, length=num_steps)
        return state, jax.tree.map(jnp.mean, metrics)

    return Matd3(init, train)
