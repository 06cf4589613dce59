"""CODA by classifier-free guidance: samples of a denoiser conditioned on the joint policy (Eq. 3; Sec. 4.2, route B).

For policies compact enough to be a condition themselves, as those of one-step games: y is the joint action in
transformed units, at training the sample's own, at sampling the policy's.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax import transforms
from coda_jax.augmentation.base import Augmentation
from coda_jax.data.dataset import Dataset
from coda_jax.diffusion.guidance import classifier_free as classifier_free_denoiser
from coda_jax.marl.learner import LearnerState
from coda_jax.prior import Condition, Prior, TrajectoryModel, prior_denoiser, sample_trajectories
from coda_jax.types import PRNGKey, TaskSpec, Trajectory

LARGEST_CONDITION = 2.5
"""Conditions are clipped to this, one part in 93 of the data on either side: a denoiser that has seen a corner of the
square once extrapolates there, and may lead away from it."""


def classifier_free(
    model: TrajectoryModel, joint_action: Callable[[LearnerState], Float[Array, "A U"]], w: float = 1.0
) -> Augmentation:
    """Trajectories conditioned on the joint policy, renewed every round.

    Args:
        model: the static side of a `Prior` whose denoiser was fitted with `action_condition`.
        joint_action: the policy, as the joint action that it takes in a game without observations.
        w: scale of classifier-free guidance (Eq. 3); 0 samples the conditional model.
    """
    channels = transforms.action_channels(model.spec)

    def sample(
        state: LearnerState, dataset: Dataset, prior: Prior, guidance: Float[Array, ""], key: PRNGKey, num: int
    ) -> Trajectory:
        del dataset, guidance
        key_condition, key_sample = jax.random.split(key)
        encoding = transforms.select(prior.transform, channels)
        y = transforms.forward(encoding, joint_action(state).reshape(1, -1), key_condition)
        y = jnp.clip(y, -LARGEST_CONDITION, LARGEST_CONDITION)
        denoise = classifier_free_denoiser(prior_denoiser(model, prior, y), prior_denoiser(model, prior), w)
        return sample_trajectories(model, prior, key_sample, num, denoise=denoise)

    return Augmentation(sample, is_renewed=True)


def action_condition(spec: TaskSpec, noise: float = 0.0) -> Condition:
    """The training condition of `classifier_free`: each one-step trajectory's own joint action.

    Args:
        spec: sizes of the task.
        noise: s_y, standard deviation of the noise on y, in transformed units. Eq. 15 with a policy of standard
            deviation s has lambda / s^2 = (1 + w) / s_y^2.
    """
    channels = transforms.action_channels(spec)

    def condition(z: Float[Array, "B 1 C"], key: PRNGKey) -> Float[Array, "B K"]:
        y = jnp.clip(z[:, 0, channels], -LARGEST_CONDITION, LARGEST_CONDITION)
        return y + noise * jax.random.normal(key, y.shape)

    return condition
