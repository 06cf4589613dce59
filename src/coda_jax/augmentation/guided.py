"""CODA by the policy's score: samples guided toward the current joint policy (Algorithm 1, Eq. 14; route A)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from coda_jax import transforms
from coda_jax.augmentation.adaptive_guidance import AdaptiveGuidance
from coda_jax.augmentation.base import Augmentation
from coda_jax.augmentation.dynamics_guide import DynamicsScore, dynamics_guide
from coda_jax.data.dataset import Dataset, sample_windows
from coda_jax.diffusion.guidance import Guide, gaussian_log_prob, score_guide, sum_of_guides
from coda_jax.diffusion.samplers import Known
from coda_jax.marl.learner import Learner, LearnerState, unroll
from coda_jax.prior import Prior, TrajectoryModel, sample_trajectories
from coda_jax.types import PRNGKey, TaskSpec, Trajectory


def guided(
    model: TrajectoryModel,
    learner: Learner,
    guidance: float | AdaptiveGuidance,
    recorded_steps: int = 0,
    recorded_actions: bool = False,
    noise: float = 0.0,
    score: DynamicsScore | None = None,
) -> Augmentation:
    """Trajectories guided toward the joint policy by a scale of `guidance` (lambda), renewed every round.

    Eq. 15 tilts whole trajectories, so guidance also moves where they start, toward states in which the teammates
    already agree. With `recorded_steps` the first tokens' states and observations are those of a recorded window, held
    there at every denoising step; with `recorded_actions` also the actions and rewards that lead from one held state to
    the next, so that these transitions are true. Neither is in the paper.

    Args:
        model: the static side of the fitted `Prior`.
        learner: whose policy is followed.
        guidance: lambda; 0 samples the unconditional model, anew every round. `AdaptiveGuidance` asks for a spread of
            the actions instead.
        recorded_steps: tokens whose states and observations are held to recorded ones, 0 to H; H leaves the actions
            alone to be guided, along recorded states.
        recorded_actions: whether all tokens before the last held one are recorded as a whole.
        noise: standard deviation of Gaussian noise on the guided actions, which are then clipped to [-1, 1]. Strong
            guidance leaves them hardly any spread, from which a critic learns no gradient. Next states and rewards do
            not follow the noise, unlike that of `model_consequences`.
        score: a one-step model that guides states, observations and rewards beside the policy, at the same lambda
            (`dynamics_guide`); the prior is then a `PriorWithDynamics`. Not in the paper.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> from coda_jax.diffusion.unet import UNetConfig
        >>> config = cj.GeneratorConfig(unet=UNetConfig(width=4), num_updates=2, batch_size=8)
        >>> model = cj.make_model(env.spec, 1, config, cj.SamplerConfig(num_steps=4))
        >>> learner = cj.maddpg_bc(env.spec, cj.MaddpgBcConfig(), cj.raw_inputs(env.spec))
        >>> coda = cj.guided(model, learner, guidance=0.6)
        >>> prior, state = cj.fit_prior(model, dataset, jax.random.key(1)), learner.init(jax.random.key(2))
        >>> coda.sample(state, dataset, prior, jnp.float32(0.6), jax.random.key(3), 6).action.shape
        (6, 1, 2, 1)
    """
    prefix = recorded_steps - 1 if recorded_actions else 0

    def sample_clean(
        state: LearnerState, dataset: Dataset, prior: Any, guidance: Float[Array, ""], key: PRNGKey, num: int
    ) -> Trajectory:
        fitted: Prior = prior if score is None else prior.prior
        guide = policy_guide(learner, state, fitted.transform, model.spec)
        if score is not None:
            guide = sum_of_guides(guide, dynamics_guide(score, prior.dynamics, fitted.transform))
        if recorded_steps == 0:
            return sample_trajectories(model, fitted, key, num, guide=guide, guidance=guidance)
        key_known, key_sample = jax.random.split(key)
        known = recorded_start(model, fitted, dataset, key_known, num, recorded_steps, recorded_actions)
        return sample_trajectories(model, fitted, key_sample, num, guide=guide, guidance=guidance, known=known)

    def sample(
        state: LearnerState, dataset: Dataset, prior: Any, guidance: Float[Array, ""], key: PRNGKey, num: int
    ) -> Trajectory:
        key_sample, key_noise = jax.random.split(key)
        clean = sample_clean(state, dataset, prior, guidance, key_sample, num)
        deviation = noise * jax.random.normal(key_noise, clean.action.shape)
        noisy = jnp.clip(clean.action + deviation.at[:, :prefix].set(0.0), -1.0, 1.0)
        return dataclasses.replace(clean, action=noisy)

    return Augmentation(sample_clean if noise == 0.0 else sample, guidance=guidance, prefix=prefix)


def recorded_start(
    model: TrajectoryModel,
    prior: Prior,
    dataset: Dataset,
    key: PRNGKey,
    num: int,
    num_steps: int,
    with_actions: bool = False,
) -> Known:
    """States and observations of the first `num_steps` tokens of `num` recorded windows. The key is consumed.

    With actions, the tokens before the last of these are known as a whole.
    """
    key_windows, key_encode = jax.random.split(key)
    windows = sample_windows(dataset, key_windows, num, model.horizon)
    values = transforms.forward(prior.transform, transforms.pack(windows), key_encode)
    return Known(values=values, mask=held_entries(model.spec, model.horizon, num_steps, with_actions))


def held_entries(spec: TaskSpec, horizon: int, num_steps: int, with_actions: bool) -> Bool[Array, "1 H C"]:
    """Whether an entry of the tokens is a state or observation of the first `num_steps`.

    With actions, also whether it is any entry of the tokens before the last of these.
    """
    is_situation = jnp.arange(transforms.num_channels(spec)) < transforms.obs_channels(spec).stop
    token = jnp.arange(horizon)
    mask = (token < num_steps)[:, None] & is_situation[None]
    if with_actions:
        mask = mask | (token < num_steps - 1)[:, None]
    return mask[None]


def policy_guide(learner: Learner, state: LearnerState, transform: transforms.CdfTransform, spec: TaskSpec) -> Guide:
    """The guide of Eq. 14 for a joint policy: toward its actions, along each denoised trajectory."""
    obs_channels, action_channels = transforms.obs_channels(spec), transforms.action_channels(spec)
    decoded = slice(obs_channels.start, action_channels.stop)  # observations and actions stand side by side
    decoding = transforms.select(transform, decoded)
    num_obs = obs_channels.stop - obs_channels.start

    def decode(denoised: Float[Array, "B H C"]) -> tuple[Float[Array, "B H A U"], Float[Array, "B H A O"]]:
        x = transforms.inverse(decoding, denoised[..., decoded])
        obs = x[..., :num_obs].reshape(*x.shape[:-1], spec.num_agents, spec.obs_dim)
        return x[..., num_obs:].reshape(*x.shape[:-1], spec.num_agents, spec.action_dim), obs

    def log_prob(action: Float[Array, "B H A U"], obs: Float[Array, "B H A O"]) -> Float[Array, "B"]:
        return gaussian_log_prob(action, unroll(learner, state, obs))

    return score_guide(log_prob, decode, action_channels)
