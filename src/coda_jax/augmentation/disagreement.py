"""A filter of synthetic trajectories: those that the members of a one-step model disagree with least are kept.

Where members differ from each other, or all from the trajectory, its steps are likely to be wrong. Model-based methods
penalise or truncate such steps (Yu et al. 2020; Kidambi et al. 2020), and DiffStitch (Li et al. 2024) drops stitches
by their deviation from a model. Not in the paper.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from coda_jax.augmentation.base import Augmentation
from coda_jax.augmentation.model_based import PriorWithDynamics
from coda_jax.data.dataset import Dataset
from coda_jax.dynamics.ensemble import Dynamics, DynamicsModel
from coda_jax.marl.learner import LearnerState
from coda_jax.types import PRNGKey, Trajectory


def keep_agreed(augmentation: Augmentation, model: DynamicsModel, keep_fraction: float) -> Augmentation:
    """The share `keep_fraction` of an augmentation's trajectories whose `disagreement` is least.

    For `num` trajectories it samples ceil(num / keep_fraction). Where these are sampled in chunks, each chunk keeps its
    own best. The `prior` of the result is a `PriorWithDynamics`, which holds that of the augmentation.

    Args:
        augmentation: the source of trajectories of at least two tokens.
        model: the ensemble's functions.
        keep_fraction: above 0, at most 1; 1 keeps all.

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
        >>> def replay(learner_state, dataset, prior, guidance, key, num):
        ...     return cj.sample_windows(dataset, key, num, horizon=3)
        >>> kept = cj.keep_agreed(cj.Augmentation(replay), model, keep_fraction=0.25)
        >>> prior = cj.PriorWithDynamics(prior=(), dynamics=model.fit(dataset, jax.random.key(0)))
        >>> kept.sample((), dataset, prior, jnp.float32(0.0), jax.random.key(1), 6).state.shape
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
        num_candidates = math.ceil(num / keep_fraction)
        candidates = augmentation.sample(state, dataset, prior.prior, guidance, key, num_candidates)
        kept = least_disagreed(model, prior.dynamics, candidates, num)
        return jax.tree.map(lambda leaf: leaf[kept], candidates)

    return augmentation._replace(sample=sample)


def least_disagreed(model: DynamicsModel, dynamics: Dynamics, trajectory: Trajectory, num: int) -> Int[Array, "num"]:
    """Indices, rising, of the trajectories `[B, H, ...]` whose disagreement is least; NaN counts as most."""
    return jnp.sort(jnp.argsort(disagreement(model, dynamics, trajectory))[:num])


def disagreement(model: DynamicsModel, dynamics: Dynamics, trajectory: Trajectory) -> Float[Array, "B"]:
    """Root mean square distance of next states and rewards from the members' predictions, in the data's deviations.

    The mean runs over the steps of a trajectory `[B, H, ...]`, H at least 2, and over features and members, so its
    square is that of the error of the ensemble's mean plus that of the deviation between members. Trajectories by the
    model itself have the latter alone.
    """
    predicted = model.predict(dynamics, trajectory.state[:, :-1], trajectory.action[:, :-1])
    expected = jnp.concatenate([predicted.state, predicted.reward[..., None]], axis=-1)
    generated = jnp.concatenate([trajectory.state[:, 1:], trajectory.reward[:, :-1, None]], axis=-1)
    state_std = dynamics.input_std[: trajectory.state.shape[-1]]
    unit = jnp.append(state_std, dynamics.target_std[-1])
    unit = jnp.where(unit > 0.0, unit, jnp.inf)[None, None]
    squared = jnp.square((generated - expected) / unit) + jnp.square(predicted.disagreement / unit)
    return jnp.sqrt(jnp.mean(squared, axis=(1, 2)))
