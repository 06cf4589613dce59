"""The Q-conditioned baseline: a static augmented dataset of high returns, by classifier-free guidance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax import transforms
from coda_jax.augmentation.base import Augmentation
from coda_jax.data.dataset import Dataset
from coda_jax.diffusion.guidance import classifier_free as classifier_free_denoiser
from coda_jax.marl.learner import LearnerState
from coda_jax.prior import Prior, TrajectoryModel, prior_denoiser, sample_trajectories
from coda_jax.types import PRNGKey, Trajectory


def return_conditioned(model: TrajectoryModel, top_returns: float = 0.02, w: float = 1.0) -> Augmentation:
    """Trajectories conditioned on a return among the highest, sampled once.

    Args:
        model: the static side of a `Prior` whose denoiser was fitted with `return_condition`.
        top_returns: share of the returns, the highest, that are asked for.
        w: scale of classifier-free guidance (Eq. 3).
    """

    def sample(
        state: LearnerState, dataset: Dataset, prior: Prior, guidance: Float[Array, ""], key: PRNGKey, num: int
    ) -> Trajectory:
        del state, dataset, guidance
        key_return, key_sample = jax.random.split(key)
        u = jax.random.uniform(key_return, (num, 1), minval=1.0 - top_returns, maxval=1.0)
        y = jnp.log(u / jnp.maximum(1.0 - u, transforms.CLIP)) / transforms.LOGISTIC_STD  # as `transforms.forward`
        denoise = classifier_free_denoiser(prior_denoiser(model, prior, y), prior_denoiser(model, prior), w)
        return sample_trajectories(model, prior, key_sample, num, denoise=denoise)

    return Augmentation(sample, is_renewed=False)


def return_condition(z: Float[Array, "B 1 C"], key: PRNGKey) -> Float[Array, "B 1"]:
    """The training condition of `return_conditioned`: the reward of a one-step trajectory, in transformed units."""
    del key
    return z[:, 0, -2:-1]
