"""The unconditional baseline: a static augmented dataset, sampled once from the prior without guidance."""

from jaxtyping import Array, Float

from coda_jax.augmentation.base import Augmentation
from coda_jax.data.dataset import Dataset
from coda_jax.marl.learner import LearnerState
from coda_jax.prior import Prior, TrajectoryModel, sample_trajectories
from coda_jax.types import PRNGKey, Trajectory


def unconditional(model: TrajectoryModel) -> Augmentation:
    """Trajectories of the unconditional model, sampled once; `guided(model, learner, 0.0)` renews them.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, environment
        >>> env = environment(MULTIPLICATION)
        >>> from coda_jax.diffusion.unet import UNetConfig
        >>> config = cj.GeneratorConfig(unet=UNetConfig(width=4), num_updates=2, batch_size=8)
        >>> model = cj.make_model(env.spec, 1, config, cj.SamplerConfig(num_steps=4))
        >>> cj.unconditional(model).is_renewed
        False
    """

    def sample(
        state: LearnerState, dataset: Dataset, prior: Prior, guidance: Float[Array, ""], key: PRNGKey, num: int
    ) -> Trajectory:
        del state, dataset, guidance
        return sample_trajectories(model, prior, key, num)

    return Augmentation(sample, is_renewed=False)
