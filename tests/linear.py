"""A linear world with Gaussian data, of which everything is known: dynamics, one-step model, and ideal denoiser.

One agent; x' = 0.9 x + 0.8 u + 0.1 noise, r = x + u, and the recorded actions are u = 0.1 x + 0.3 noise.
"""

import jax.numpy as jnp
import numpy as np

from coda_jax import transforms
from coda_jax.data.dataset import make_dataset
from coda_jax.diffusion.generator import GeneratorConfig
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.diffusion.unet import UNetConfig
from coda_jax.dynamics.ensemble import Dynamics, DynamicsModel, Prediction
from coda_jax.envs.base import Environment, EnvState
from coda_jax.marl.learner import Learner
from coda_jax.prior import Prior, TrajectoryModel, make_model
from coda_jax.types import TaskSpec, Trajectory
from tests.drift import noise_episodes

H, C = 6, 5
NOISE = 0.1
SPEC = TaskSpec(name="linear", num_agents=1, state_dim=1, obs_dim=1, action_dim=1, episode_length=H)


def _set_state(state) -> EnvState:
    zero = jnp.zeros((), bool)
    return EnvState(
        state=state, obs=state[None], reward=jnp.zeros(()), terminal=zero, truncated=zero, time=jnp.zeros((), jnp.int32)
    )


def _step(now: EnvState, action) -> EnvState:
    return _set_state(0.9 * now.state + 0.8 * action[0]).replace(reward=now.state[0] + action[0, 0])


ENV = Environment(lambda key: _set_state(jnp.zeros(1)), _step, _set_state, SPEC)
"""The world without noise."""

DYNAMICS = Dynamics(
    params=(), input_mean=jnp.zeros(2), input_std=jnp.ones(2), target_mean=jnp.zeros(2), target_std=jnp.ones(2)
)


def _predict(dynamics, state, action) -> Prediction:
    del dynamics
    zero = jnp.zeros((*state.shape[:-1], 2))
    return Prediction(0.9 * state + 0.8 * action[..., 0], state[..., 0] + action[..., 0, 0], zero[..., 0], zero, zero)


MODEL = DynamicsModel(fit=lambda dataset, key: DYNAMICS, predict=_predict)
"""The one-step model that is right; its members agree."""

POLICY = Learner(
    init=lambda key: (),
    update=lambda state, trajectory, weights, key: (state, {}),
    act=lambda state, obs, carry: (jnp.full((*obs.shape[:-1], 1), 0.6), carry),
    initial_carry=lambda shape: (),
)
"""Always 0.6, two standard deviations above the recorded actions."""


def _covariance() -> np.ndarray:
    """Covariance of the packed trajectories, flattened, in diffusion space."""
    of_noise = np.zeros((H, C, 1 + 2 * H))  # a trajectory is linear in its noise
    x = np.zeros(1 + 2 * H)
    x[0] = 0.8
    for t in range(H):
        u = 0.1 * x
        u[1 + 2 * t] += 0.3
        of_noise[t, :4] = x, x, u, x + u
        x = 0.9 * x + 0.8 * u
        x[2 + 2 * t] += NOISE
    flat = (of_noise / STD).reshape(H * C, -1)
    return flat @ flat.T


STD = np.array([0.8, 0.8, 0.31, 0.9, 1.0])[:, None]
"""About the standard deviations of state, observation, action and reward, by which they are divided in diffusion space;
of the terminal, which is 0."""
COVARIANCE = _covariance()


def _transform() -> transforms.CdfTransform:
    """The map x = STD z, but for the rounding of the tables and the limits of their range."""
    quantiles = (np.arange(8192) + 0.5) / 8192
    z = np.log(quantiles / (1 - quantiles)) / transforms.LOGISTIC_STD
    tokens = z[:, None] * STD[:, 0]
    tokens[:, -1] = 0.0
    return transforms.fit(tokens, num_knots=8192)


DATASET = make_dataset(noise_episodes(SPEC, 4, H), H)
"""Recorded windows, for functions that ask for some."""

PRIOR = Prior(transform=_transform(), denoiser=())


def linear_model(sampler: SamplerConfig) -> TrajectoryModel:
    """The ideal denoiser of the data with a sampler."""
    eigenvalues, vectors = np.linalg.eigh(COVARIANCE)
    variance, basis = (jnp.asarray(x, jnp.float32) for x in (np.maximum(eigenvalues, 0.0), vectors))

    def denoise(params, tau, sigma, condition=None):
        del params, condition
        gain = variance / (variance + sigma**2)
        return ((tau.reshape(-1, H * C) @ basis * gain[None]) @ basis.T).reshape(tau.shape)

    model = make_model(SPEC, H, GeneratorConfig(unet=UNetConfig(width=4, channel_multipliers=(1,))), sampler)
    return model._replace(generator=model.generator._replace(denoise=denoise))


def one_step_error(trajectory: Trajectory) -> float:
    """Root mean square of x' - 0.9 x - 0.8 u, in units of the dynamics' noise."""
    x, u = np.asarray(trajectory.state[..., 0], np.float64), np.asarray(trajectory.action[..., 0, 0], np.float64)
    return float(np.sqrt(np.mean((x[:, 1:] - 0.9 * x[:, :-1] - 0.8 * u[:, :-1]) ** 2)) / NOISE)
