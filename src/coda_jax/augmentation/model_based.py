"""Trajectories whose consequences a learned one-step model gives, not the denoiser; not in the paper.

A denoiser of whole trajectories leaves the next states of guided actions near those of the unguided ones. A one-step
model is truer: here it continues guided trajectories from their first states, or rolls out the policy by itself, as
model-based methods do (Barde et al. 2024).
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.augmentation.base import Augmentation
from coda_jax.augmentation.oracle import oracle, policy_rollouts, segments
from coda_jax.data.dataset import Dataset
from coda_jax.dynamics.ensemble import Dynamics, DynamicsModel
from coda_jax.dynamics.environment import learned_environment
from coda_jax.envs.base import Environment
from coda_jax.marl.learner import Learner, LearnerState, follow
from coda_jax.types import PRNGKey, Trajectory


@chex.dataclass(frozen=True)
class PriorWithDynamics:
    """The fitted models that `model_consequences` samples from.

    prior:    that of the augmentation whose consequences are replaced, such as a fitted `Prior`.
    dynamics: the fitted ensemble.

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
        >>> cj.PriorWithDynamics(prior=(), dynamics=model.fit(dataset, jax.random.key(0))).dynamics.target_std.shape
        (4,)
    """

    prior: Any
    dynamics: Dynamics


def model_rollouts(
    env: Environment, model: DynamicsModel, learner: Learner, horizon: int, noise: float, num_segments: int = 1
) -> Augmentation:
    """Roll-outs of the joint policy in a learned model, from recorded states; renewed every round.

    The `prior` of the augmentation is the fitted `Dynamics`.

    Args:
        env: the task of the data, for the observations of predicted states.
        model: the ensemble's functions.
        learner: whose policy acts.
        horizon: H.
        noise: standard deviation of Gaussian noise on the actions.
        num_segments: trajectories of a roll-out, one after the other.

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
        >>> learner = cj.maddpg_bc(env.spec, cj.MaddpgBcConfig(), cj.raw_inputs(env.spec))
        >>> rolled_out = cj.model_rollouts(env, model, learner, horizon=3, noise=0.2)
        >>> state = learner.init(jax.random.key(1))
        >>> dynamics = model.fit(dataset, jax.random.key(0))
        >>> rolled_out.sample(state, dataset, dynamics, jnp.float32(0.0), jax.random.key(2), 6).reward.shape
        (6, 3)
    """

    def sample(
        state: LearnerState, dataset: Dataset, prior: Dynamics, guidance: Float[Array, ""], key: PRNGKey, num: int
    ) -> Trajectory:
        learned = oracle(learned_environment(env, model, prior), learner, horizon, noise, num_segments)
        return learned.sample(state, dataset, (), guidance, key, num)

    return Augmentation(sample, is_renewed=True)


def model_consequences(
    augmentation: Augmentation,
    env: Environment,
    model: DynamicsModel,
    learner: Learner,
    noise: float = 0.0,
    prefix: int = 0,
    num_segments: int = 1,
) -> Augmentation:
    """The trajectories of an augmentation, their consequences replaced by those of a learned model.

    After `prefix` tokens of each trajectory, the policy acts in the model; a generated action's deviation from the
    policy at its generated observation is added to the policy's action at the predicted observation. So starts and the
    spread of actions are the augmentation's, and states, observations, rewards and ends follow from the actions. Where
    guidance leaves the actions hardly any spread, `noise` gives the critic other actions to compare.
    The `prior` of the result is a `PriorWithDynamics`.

    Args:
        augmentation: the source of trajectories, such as `guided`.
        env: the task of the data, for the observations of predicted states.
        model: the ensemble's functions.
        learner: whose policy acts.
        noise: standard deviation of Gaussian noise added to the deviations.
        prefix: tokens that stay as they are, with actions of their own; the policy's memory follows them. They should
            be recorded, as those of `guided(..., recorded_steps=prefix + 1, recorded_actions=True)`.
        num_segments: trajectories that start from one of the augmentation's, one after the other: after its own tokens
            the policy acts on in the model, with `noise` alone on its actions.

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
        >>> learner = cj.maddpg_bc(env.spec, cj.MaddpgBcConfig(), cj.raw_inputs(env.spec))
        >>> def replay(learner_state, dataset, prior, guidance, key, num):
        ...     return cj.sample_windows(dataset, key, num, horizon=3)
        >>> followed = cj.model_consequences(cj.Augmentation(replay), env, model, learner)
        >>> prior = cj.PriorWithDynamics(prior=(), dynamics=model.fit(dataset, jax.random.key(0)))
        >>> state = learner.init(jax.random.key(1))
        >>> followed.sample(state, dataset, prior, jnp.float32(0.0), jax.random.key(2), 6).state.shape
        (6, 3, 3)
    """

    def sample(
        state: LearnerState,
        dataset: Dataset,
        prior: PriorWithDynamics,
        guidance: Float[Array, ""],
        key: PRNGKey,
        num: int,
    ) -> Trajectory:
        key_sample, key_noise = (key, None) if noise == 0.0 else jax.random.split(key)
        num_starts = math.ceil(num / num_segments)
        generated = augmentation.sample(state, dataset, prior.prior, guidance, key_sample, num_starts)
        horizon = generated.reward.shape[1]
        first, rest = (
            jax.tree.map(lambda x, part=part: x[:, part], generated) for part in (slice(prefix), slice(prefix, None))
        )
        _, memory = follow(learner, state, first.obs, learner.initial_carry((num_starts,)))
        policy_action, _ = follow(learner, state, rest.obs, memory)
        further = ((0, 0), (0, (num_segments - 1) * horizon), (0, 0), (0, 0))
        deviation = jnp.pad(rest.action - policy_action, further)
        if key_noise is not None:
            deviation = deviation + noise * jax.random.normal(key_noise, deviation.shape)
        world = learned_environment(env, model, prior.dynamics)
        followed = policy_rollouts(world, learner, state, rest.state[:, 0], memory, deviation)
        whole = jax.tree.map(lambda *tokens: jnp.concatenate(tokens, axis=1), first, followed)
        return segments(whole, horizon, num)

    return augmentation._replace(sample=sample)
