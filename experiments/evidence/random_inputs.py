"""Random data and weights of the sizes of a task, for measurements whose results they do not affect."""

import jax
import numpy as np

from coda_jax.data.dataset import Dataset, episodes_from_arrays, make_dataset
from coda_jax.envs.base import Environment
from coda_jax.prior import Prior, TrajectoryModel, fit_transform

HORIZON = 20


def random_dataset(env: Environment) -> Dataset:
    """A dataset of 2,000 random steps."""
    spec, steps, rng = env.spec, 2000, np.random.default_rng(0)
    episodes = episodes_from_arrays(
        state=rng.normal(size=(steps, spec.state_dim)),
        obs=rng.normal(size=(steps, spec.num_agents, spec.obs_dim)),
        action=rng.uniform(-1, 1, size=(steps, spec.num_agents, spec.action_dim)),
        reward=rng.normal(size=steps),
        terminal=np.zeros(steps),
        truncation=np.zeros(steps),
    )
    return make_dataset(episodes, HORIZON)


def random_prior(model: TrajectoryModel, dataset: Dataset) -> Prior:
    """A prior of random weights."""
    weights = model.generator.init(jax.random.key(0)).params
    return Prior(transform=fit_transform(dataset, model.spec), denoiser=weights)
