"""Synthetic data whose consequences follow the actions in part, built artificially in the true environment.

A recorded window with the policy's actions in place of the recorded ones has a *response* of 0: its states are those of
the recorded actions. The oracle has a response of 1. Between them the environment is moved by recorded actions plus a
share of the change. So a trainer can be asked what a sampler's response is worth, everything else being exact.
"""

import jax
from jaxtyping import Array, Float

from coda_jax.augmentation.base import Augmentation
from coda_jax.augmentation.oracle import policy_rollouts
from coda_jax.data.dataset import Dataset, sample_windows
from coda_jax.envs.base import Environment
from coda_jax.marl.learner import Learner, LearnerState
from coda_jax.types import PRNGKey, Trajectory


def partial_response(env: Environment, learner: Learner, horizon: int, noise: float) -> Augmentation:
    """Trajectories of the joint policy from recorded states, whose consequences follow its actions in part.

    The `prior` is the response, a scalar: 0 for the consequences of the recorded actions, 1 for those of the policy's.

    Args:
        env: the environment of the data.
        learner: whose policy acts, its memory empty at first.
        horizon: H.
        noise: standard deviation of Gaussian noise on the policy's actions.
    """

    def sample(
        state: LearnerState,
        dataset: Dataset,
        prior: Float[Array, ""],
        guidance: Float[Array, ""],
        key: PRNGKey,
        num: int,
    ) -> Trajectory:
        del guidance
        key_windows, key_noise = jax.random.split(key)
        windows = sample_windows(dataset, key_windows, num, horizon)
        deviation = noise * jax.random.normal(key_noise, windows.action.shape)

        def moved_by(action: Array, number: Array) -> Array:
            recorded = windows.action[:, number]
            return recorded + prior * (action - recorded)

        memory = learner.initial_carry((num,))
        return policy_rollouts(env, learner, state, windows.state[:, 0], memory, deviation, moved_by)

    return Augmentation(sample, is_renewed=True)
