"""Evaluation of joint policies (returns, action likelihoods) and of synthetic trajectories.

Four numbers measure the quality of synthetic trajectories, each compared with held-out data: the distance between the
distributions of features, the error of observations given the state, the *dynamics error* (one simulated step from
(s_t, a_t), compared with (s_{t+1}, r_t)), and the *optimism* (the rewards of a trajectory, less those that its actions
earn in the simulator from s_0).
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from coda_jax import transforms
from coda_jax.augmentation.oracle import policy_rollouts
from coda_jax.backend import full_precision, sizes
from coda_jax.diffusion.guidance import gaussian_log_prob
from coda_jax.envs.base import Environment, EnvState
from coda_jax.envs.rollout import episode_returns
from coda_jax.marl.learner import Carry, Learner, LearnerState, follow, unroll
from coda_jax.types import PRNGKey, Trajectory


@full_precision
def policy_returns(
    env: Environment, learner: Learner, state: LearnerState, key: PRNGKey, num_episodes: int
) -> Float[Array, "num_episodes"]:
    """Undiscounted returns of whole episodes of the policy without noise; the key (consumed) sets the starts."""

    def act(obs: Array, carry: Carry, key: PRNGKey) -> tuple[Array, Carry]:
        del key
        return learner.act(state, obs, carry)

    return episode_returns(env, act, learner.initial_carry((num_episodes,)), key, num_episodes)


@full_precision
def action_log_likelihood(learner: Learner, state: LearnerState, trajectory: Trajectory) -> Float[Array, "B"]:
    """Log N(a; mu(o), 1) of trajectories `[B, H, ...]`, summed over horizon and agents (Sec. 6.2.1)."""
    return gaussian_log_prob(trajectory.action, unroll(learner, state, trajectory.obs))


@full_precision
def action_spread(learner: Learner, state: LearnerState, trajectory: Trajectory, prefix: int = 0) -> Float[Array, ""]:
    """The root mean square of a - mu(o) over trajectories `[B, H, ...]`, agents and action dimensions.

    Args:
        learner: whose policy is mu.
        state: its state.
        trajectory: the trajectories.
        prefix: first tokens that do not count; the policy's memory follows them.
    """
    deviation = trajectory.action - unroll(learner, state, trajectory.obs)
    return jnp.sqrt(jnp.mean(jnp.square(deviation[:, prefix:])))


@full_precision
def play_from(
    env: Environment, learner: Learner, state: LearnerState, windows: Trajectory, num_steps: int
) -> Trajectory:
    """Trajectories `[B, num_steps, ...]` of the policy without noise, from the last states of windows `[B, H, ...]`.

    Its memory follows the windows up to there. The end of an episode does not stop it.
    """
    num = windows.reward.shape[0]
    _, memory = follow(learner, state, windows.obs[:, :-1], learner.initial_carry((num,)))
    still = jnp.zeros((num, num_steps, env.spec.num_agents, env.spec.action_dim))
    return policy_rollouts(env, learner, state, windows.state[:, -1], memory, still)


def discounted_returns(trajectory: Trajectory, discount: float) -> Float[Array, "B"]:
    """Sums of discounted rewards of trajectories `[B, H, ...]`, up to their first true end."""
    alive = jnp.cumprod(1.0 - trajectory.terminal, axis=1)
    counts = jnp.concatenate([jnp.ones_like(alive[:, :1]), alive[:, :-1]], axis=1)
    return jnp.sum(trajectory.reward * counts * discount ** jnp.arange(trajectory.reward.shape[1])[None], axis=1)


@chex.dataclass(frozen=True)
class SampleQuality:
    """Errors of trajectories, in standard deviations of the reference data; 0 is perfect.

    feature_distance:  `[*batch, C]` 1-Wasserstein distance of each channel of a token to the reference; 0 if the
                       reference is constant.
    observation_error: root mean square error of the observations relative to the environment's observations of the
                       state.
    dynamics_error:    median over steps of the root mean square error of s_{t+1}, over the features of the state,
                       relative to the simulated next state. The median is robust to infeasible poses, for which the
                       simulated next state is far away.
    reward_error:      median over steps of |r_t - simulated reward|.
    optimism:          median over trajectories of the mean of r_t minus the mean reward of the actions simulated from
                       the first state; positive for overestimated rewards. It accumulates systematic errors of the
                       steps, while other errors cancel.
    """

    feature_distance: Float[Array, "*batch C"]
    observation_error: Float[Array, "*batch"]
    dynamics_error: Float[Array, "*batch"]
    reward_error: Float[Array, "*batch"]
    optimism: Float[Array, "*batch"]


@full_precision
def sample_quality(env: Environment, trajectory: Trajectory, reference: Trajectory) -> SampleQuality:
    """Computes the errors of trajectories `[B, H, ...]`, H at least 2, with as many held-out real ones as reference."""
    obs_channels = transforms.obs_channels(env.spec)
    tokens, truth = (transforms.pack(x).reshape(-1, transforms.num_channels(env.spec)) for x in (trajectory, reference))
    distance = jnp.mean(jnp.abs(jnp.sort(tokens, axis=0) - jnp.sort(truth, axis=0)), axis=0)
    spread = jnp.std(truth, axis=0)
    scale = jnp.where(spread > 0, spread, jnp.inf)  # constant features do not count

    def rms(error: Float[Array, "N K"], scale: Float[Array, "K"]) -> Float[Array, "N"]:
        return jnp.sqrt(jnp.mean(jnp.square(error / scale[None]), axis=-1))

    expected_obs = jax.vmap(lambda state: env.set_state(state).obs.reshape(-1))(
        trajectory.state.reshape(-1, env.spec.state_dim)
    )
    obs_error = rms(tokens[:, obs_channels] - expected_obs, scale[obs_channels])

    next_state, reward, rollout_reward = _simulate(env, trajectory)
    state_error = (trajectory.state[:, 1:] - next_state).reshape(-1, env.spec.state_dim)
    generated_reward = trajectory.reward[:, :-1]

    def median(error: Float[Array, "N"]) -> Float[Array, ""]:
        return jnp.median(jnp.where(jnp.isfinite(error), error, jnp.inf))  # NaN: a pose that MJX cannot simulate

    reward_std = scale[-2]  # reward and terminal are the last two channels
    return SampleQuality(
        feature_distance=distance / scale,
        observation_error=jnp.sqrt(jnp.mean(jnp.square(obs_error))),
        dynamics_error=median(rms(state_error, scale[: env.spec.state_dim])),
        reward_error=median(jnp.abs(generated_reward - reward).reshape(-1)) / reward_std,
        optimism=median(jnp.mean(generated_reward - rollout_reward, axis=1)) / reward_std,
    )


def _simulate(
    env: Environment, trajectory: Trajectory
) -> tuple[Float[Array, "B steps S"], Float[Array, "B steps"], Float[Array, "B steps"]]:
    """Next state and reward of each step simulated by itself, and the rewards of all steps simulated in sequence."""

    def simulate_one(states_and_actions: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        def step(played: EnvState, now: tuple[Array, Array]) -> tuple[EnvState, tuple[Array, Array, Array]]:
            # Both in one call: MJX's step takes long to compile.
            both = jax.tree.map(lambda a, b: jnp.stack([a, b]), env.set_state(now[0]), played)
            stepped = jax.vmap(env.step, in_axes=(0, None))(both, now[1])
            return jax.tree.map(lambda leaf: leaf[1], stepped), (stepped.state[0], stepped.reward[0], stepped.reward[1])

        states, _ = states_and_actions
        return jax.lax.scan(step, env.set_state(states[0]), states_and_actions)[1]

    steps = (trajectory.state[:, :-1], trajectory.action[:, :-1])
    return jax.lax.map(simulate_one, steps, batch_size=sizes().simulations // 2)


@full_precision
def replay_error(
    env: Environment, trajectory: Trajectory, state_std: Float[Array, "S"], num_steps: Int[Array, ""] | int
) -> Float[Array, ""]:
    """The error of states `num_steps` after another state of their trajectory, relative to simulated ones.

    The actions of each `num_steps` steps one after the other are simulated from the trajectory's own state before
    them. The error is the median, over these segments, of the root mean square over features.

    Args:
        env: the environment of the trajectories.
        trajectory: the trajectories `[B, H, ...]` to measure.
        state_std: the unit of each feature of the state; one of 0 leaves its feature out.
        num_steps: at least 1, at most H - 1; may be traced.
    """
    number = jnp.arange(trajectory.reward.shape[1] - 1)
    unit = jnp.where(state_std > 0, state_std, jnp.inf)

    def simulate_one(states_and_actions: tuple[Array, Array]) -> Array:
        states, actions = states_and_actions

        def step(played: EnvState, now: tuple[Array, Array, Array]) -> tuple[EnvState, Array]:
            number, state, action = now
            is_start = number % num_steps == 0
            played = jax.tree.map(lambda own, other: jnp.where(is_start, own, other), env.set_state(state), played)
            played = env.step(played, action)
            return played, played.state

        return jax.lax.scan(step, env.set_state(states[0]), (number, states, actions))[1]

    steps = (trajectory.state[:, :-1], trajectory.action[:, :-1])
    simulated = jax.lax.map(simulate_one, steps, batch_size=sizes().simulations)
    error = jnp.sqrt(jnp.mean(jnp.square((trajectory.state[:, 1:] - simulated) / unit[None, None]), axis=-1))
    error = jnp.where(jnp.isfinite(error), error, jnp.inf)
    is_end = (number + 1) % num_steps == 0
    return jnp.nanmedian(jnp.where(is_end[None], error, jnp.nan))


def nearest_distance(
    states: Float[Array, "B H S"], recorded: Float[Array, "M S"], state_std: Float[Array, "S"]
) -> Float[Array, ""]:
    """The median distance of states to the nearest recorded one, a root mean square over features.

    Args:
        states: the states to measure.
        recorded: those to be near.
        state_std: the unit of each feature of the state; one of 0 leaves its feature out.
    """
    unit = jnp.where(state_std > 0, state_std, jnp.inf)[None]

    def squared(of_trajectory: Float[Array, "H S"]) -> Float[Array, "H"]:
        apart = (of_trajectory / unit)[:, None] - (recorded / unit)[None]
        return jnp.min(jnp.mean(jnp.square(apart), axis=-1), axis=1)

    return jnp.median(jnp.sqrt(jax.lax.map(squared, states)))


MAX_RESPONSE = 10.0
"""Changes of the next state above this number of standard deviations are excluded, as from infeasible poses."""


@full_precision
def action_response(
    env: Environment, guided: Trajectory, unguided: Trajectory, state_std: Float[Array, "S"]
) -> Float[Array, ""]:
    """The response of generated next states to guided actions, relative to the environment's response: 1 is ideal.

    Guidance changes a sample from (s, a) to (s', a'). In the environment f, the change of the action changes the next
    state by f(s', a') - f(s', a), the true effect. The generated effect is the difference of the errors of the two
    samples, both measured at the action a. The response is the coefficient of the linear regression (without
    intercept) of the generated on the true effect, over all steps and features. It is 0 if next states follow the
    unguided actions, and NaN if no action changed. Assumes the same model error in both sets: if unguided samples
    neglect their actions, guided samples without any error have a response below 1.

    Args:
        env: the environment of the trajectories.
        guided: the trajectories to measure; H at least 2.
        unguided: trajectories from the same noise without guidance.
        state_std: the unit of each feature of the state; one of 0 leaves its feature out.
    """
    unit = jnp.where(state_std > 0, state_std, jnp.inf)

    def simulate(step: tuple[Array, Array, Array, Array]) -> Array:
        state, action, state_0, action_0 = step
        start = jax.vmap(env.set_state)(jnp.stack([state, state, state_0]))
        return jax.vmap(env.step)(start, jnp.stack([action, action_0, action_0])).state

    def flat(leaf: Array) -> Array:
        return leaf.reshape(-1, *leaf.shape[2:])

    steps = [x for samples in (guided, unguided) for x in (flat(samples.state[:, :-1]), flat(samples.action[:, :-1]))]
    stepped = jax.lax.map(simulate, tuple(steps), batch_size=sizes().simulations // 4) / unit[None, None]
    end, end_0 = (flat(samples.state[:, 1:]) / unit[None] for samples in (guided, unguided))
    caused = stepped[:, 0] - stepped[:, 1]
    followed = (end - stepped[:, 1]) - (end_0 - stepped[:, 2])
    largest = jnp.max(jnp.abs(jnp.stack([caused, followed])), axis=(0, 2))
    is_used = largest < MAX_RESPONSE  # false for NaN too
    caused, followed = (jnp.where(is_used[:, None], x, 0.0) for x in (caused, followed))
    has_moved = jnp.any(guided.action != unguided.action)
    return jnp.where(has_moved, jnp.sum(caused * followed) / jnp.sum(caused**2), jnp.nan)


def shuffled_actions(trajectory: Trajectory) -> Trajectory:
    """The trajectories `[B, H, ...]` with the actions of their neighbours: as if actions did not matter."""
    return dataclasses.replace(trajectory, action=jnp.roll(trajectory.action, 1, axis=0))


def shuffled_steps(trajectory: Trajectory) -> Trajectory:
    """Every second token of the trajectories `[B, H, ...]` taken from their neighbours: unrelated steps."""
    odd = jnp.arange(trajectory.reward.shape[1]) % 2 == 1

    def swap(leaf: Array) -> Array:
        return jnp.where(odd.reshape(1, -1, *[1] * (leaf.ndim - 2)), jnp.roll(leaf, 1, axis=0), leaf)

    return jax.tree.map(swap, trajectory)
