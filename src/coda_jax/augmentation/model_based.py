"""Trajectories whose consequences a learned one-step model gives, not the denoiser; not in the paper.

A denoiser of whole trajectories leaves the next states of guided actions near those of the unguided ones. A one-step
model is truer: here it continues guided trajectories from their first states, or rolls out the policy by itself, as
model-based methods do (Barde et al. 2024).
"""

from typing import Any

import chex
from jaxtyping import Array, Float

from coda_jax.augmentation.base import Augmentation
from coda_jax.augmentation.oracle import oracle, policy_rollouts
from coda_jax.data.dataset import Dataset
from coda_jax.dynamics.ensemble import Dynamics, DynamicsModel
from coda_jax.dynamics.environment import learned_environment
from coda_jax.envs.base import Environment
from coda_jax.marl.learner import Learner, LearnerState, unroll
from coda_jax.types import PRNGKey, Trajectory


@chex.dataclass(frozen=True)
class PriorWithDynamics:
    """The fitted models that `model_consequences` samples from.

    prior:    that of the augmentation whose consequences are replaced, such as a fitted `Prior`.
    dynamics: the fitted ensemble.
    """

    prior: Any
    dynamics: Dynamics


def model_rollouts(
    env: Environment, model: DynamicsModel, learner: Learner, horizon: int, noise: float
) -> Augmentation:
    """Roll-outs of the joint policy in a learned model, from recorded states; renewed every round.

    The `prior` of the augmentation is the fitted `Dynamics`.

    Args:
        env: the task of the data, for the observations of predicted states.
        model: the ensemble's functions.
        learner: whose policy acts.
        horizon: H.
        noise: standard deviation of Gaussian noise on the actions.
    """

    def sample(
        state: LearnerState, dataset: Dataset, prior: Dynamics, guidance: Float[Array, ""], key: PRNGKey, num: int
    ) -> Trajectory:
        learned = oracle(learned_environment(env, model, prior), learner, horizon, noise)
        return learned.sample(state, dataset, (), guidance, key, num)

    return Augmentation(sample, is_renewed=True)


def model_consequences(
    augmentation: Augmentation, env: Environment, model: DynamicsModel, learner: Learner
) -> Augmentation:
    """The trajectories of an augmentation, their consequences replaced by those of a learned model.

    From the first state of each trajectory on, the policy acts in the model; a generated action's deviation from the
    policy at its generated observation is added to the policy's action at the predicted observation. So starts and the
    spread of actions are the augmentation's, and states, observations, rewards and ends follow from the actions.
    The `prior` of the result is a `PriorWithDynamics`.

    Args:
        augmentation: the source of trajectories, such as `guided`.
        env: the task of the data, for the observations of predicted states.
        model: the ensemble's functions.
        learner: whose policy acts.
    """

    def sample(
        state: LearnerState,
        dataset: Dataset,
        prior: PriorWithDynamics,
        guidance: Float[Array, ""],
        key: PRNGKey,
        num: int,
    ) -> Trajectory:
        generated = augmentation.sample(state, dataset, prior.prior, guidance, key, num)
        deviation = generated.action - unroll(learner, state, generated.obs)
        world = learned_environment(env, model, prior.dynamics)
        return policy_rollouts(world, learner, state, generated.state[:, 0], deviation)

    return augmentation._replace(sample=sample)
