"""Consequences sampled anew by the denoiser, given where a guided trajectory starts and how it acts.

Guidance moves the actions, which their consequences follow in part. Here start and actions are then held, all else is
noised again and denoised once more, without guidance, as in image inpainting (Lugmayr et al. 2022). Not in the paper.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from coda_jax import transforms
from coda_jax.augmentation.base import Augmentation
from coda_jax.augmentation.guided import held_entries
from coda_jax.data.dataset import Dataset
from coda_jax.diffusion.guidance import Denoiser
from coda_jax.diffusion.samplers import Known, SamplerConfig, sample
from coda_jax.marl.learner import LearnerState
from coda_jax.prior import Prior, TrajectoryModel, prior_denoiser
from coda_jax.types import PRNGKey, Trajectory


def inpainted(
    augmentation: Augmentation,
    model: TrajectoryModel,
    passes: int,
    sigma: float,
    recorded_steps: int = 0,
    recorded_actions: bool = False,
) -> Augmentation:
    """The trajectories of an augmentation; states, observations, rewards and ends after the start are inpainted.

    Args:
        augmentation: the source of trajectories, such as `guided`; its prior is that of the result.
        model: the static side of the fitted `Prior`; its sampler denoises again.
        passes: times that the trajectories are noised and denoised.
        sigma: the noise level, in diffusion space, to which they are noised; between the sampler's lowest and highest.
        recorded_steps: tokens whose states and observations stay as they are, at least the first, as in `guided`.
        recorded_actions: whether all tokens before the last of these stay as a whole.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> from coda_jax.diffusion.unet import UNetConfig
        >>> config = cj.GeneratorConfig(unet=UNetConfig(width=4), num_updates=2, batch_size=8)
        >>> model = cj.make_model(env.spec, 1, config, cj.SamplerConfig(num_steps=4))
        >>> def replay(learner_state, dataset, prior, guidance, key, num):
        ...     return cj.sample_windows(dataset, key, num, horizon=1)
        >>> anew = cj.inpainted(cj.Augmentation(replay), model, passes=2, sigma=1.0)
        >>> prior = cj.fit_prior(model, dataset, jax.random.key(1))
        >>> anew.sample((), dataset, prior, jnp.float32(0.0), jax.random.key(2), 6).reward.shape
        (6, 1)
    """
    spec = model.spec
    is_action = jnp.zeros(transforms.num_channels(spec), bool).at[transforms.action_channels(spec)].set(True)
    held = held_entries(spec, model.horizon, max(recorded_steps, 1), recorded_actions) | is_action[None, None]
    sampler = sampler_below(model.sampler, sigma)

    def sample_inpainted(
        state: LearnerState, dataset: Dataset, prior: Prior, guidance: Float[Array, ""], key: PRNGKey, num: int
    ) -> Trajectory:
        key_sample, key_encode, key_passes = jax.random.split(key, 3)
        tokens = transforms.pack(augmentation.sample(state, dataset, prior, guidance, key_sample, num))
        z = transforms.forward(prior.transform, tokens, key_encode)

        def one_pass(z: Float[Array, "B H C"], key: PRNGKey) -> tuple[Float[Array, "B H C"], None]:
            return inpaint(prior_denoiser(model, prior), key, z, held, sampler), None

        z, _ = jax.lax.scan(one_pass, z, jax.random.split(key_passes, passes))
        tokens = jnp.where(held, tokens, transforms.inverse(prior.transform, z))  # held ones without rounding
        return transforms.unpack(tokens, spec)

    return augmentation._replace(sample=sample_inpainted)


def inpaint(
    denoise: Denoiser, key: PRNGKey, z: Float[Array, "B H C"], held: Bool[Array, "1 H C"], config: SamplerConfig
) -> Float[Array, "B H C"]:
    """Noises trajectories to the level `config.sigma_max`, and denoises them with some entries held.

    The sampler starts at noise around the origin, so it works on the distance from z.
    """

    def denoise_distance(distance: Float[Array, "B H C"], sigma: Float[Array, ""]) -> Float[Array, "B H C"]:
        return denoise(z + distance, sigma) - z

    known = Known(values=jnp.zeros_like(z), mask=held)
    num, horizon, channels = z.shape
    return z + sample(denoise_distance, key, (num, horizon, channels), config, known=known)


def sampler_below(config: SamplerConfig, sigma: float) -> SamplerConfig:
    """The sampler from the noise level `sigma` down, its levels about as dense as those of `config`, without churn.

    Held entries act by regression (`known_conditioning`), whatever `config` says. On linear dynamics with the ideal
    denoiser, guided trajectories missed next states by 2.0 times the dynamics' noise. After 1, 2, 3 and 4 passes from
    sigma = 1 they missed by 1.8, 1.4, 1.2 and 1.2, and with replacement by 2.2, 2.0, 1.8 and 1.7 (`dpm++`, 7 steps).

    Raises:
        RangeError: the level is not above the lowest.
    """
    top, start, bottom = (x ** (1 / config.rho) for x in (config.sigma_max, sigma, config.sigma_min))
    num_steps = max(2, math.ceil(config.num_steps * (start - bottom) / (top - bottom)))
    return dataclasses.replace(config, sigma_max=sigma, num_steps=num_steps, S_churn=0.0, known_conditioning="regress")
