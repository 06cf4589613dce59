"""Proximal joint-action prioritisation (PJAP): recorded windows near the current joint policy (Tilbury et al. 2024).

A best response under data is wrong where the recorded teammates act unlike the current ones. Where the data cover the
current joint action, windows near it are a remedy without a generative model.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.augmentation.base import Augmentation
from coda_jax.data.dataset import Dataset, sample_windows
from coda_jax.marl.learner import Learner, LearnerState, unroll
from coda_jax.types import PRNGKey, Trajectory


def proximal_replay(
    learner: Learner,
    horizon: int,
    steepness: float = 4.0,
    min_priority: float = 1e-3,
    num_candidates: int = 16,
) -> Augmentation:
    """Recorded windows, drawn by the priority of their joint actions under the current policy; renewed every round.

    The `num` windows are drawn with replacement, by their priorities, from `num * num_candidates` uniform ones: more
    candidates come closer to prioritised sampling of the whole dataset, and repeat fewer windows. OG-MARL keeps
    priorities from the last time that a window was drawn, takes them from the target policy, and ramps the steepness
    up; here they are of the current policy. The prior is not used.

    Args:
        learner: whose policy the priorities follow.
        horizon: H.
        steepness: how fast priorities fall with distance, as in `priorities`.
        min_priority: the least priority.
        num_candidates: candidates for each window drawn.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> learner = cj.maddpg_bc(env.spec, cj.MaddpgBcConfig(), cj.raw_inputs(env.spec))
        >>> state = learner.init(jax.random.key(1))
        >>> near = cj.proximal_replay(learner, horizon=1)
        >>> near.sample(state, dataset, (), jnp.float32(0.0), jax.random.key(2), 6).action.shape
        (6, 1, 2, 1)
    """

    def sample(
        state: LearnerState, dataset: Dataset, prior: object, guidance: Float[Array, ""], key: PRNGKey, num: int
    ) -> Trajectory:
        del prior, guidance
        key_windows, key_choice = jax.random.split(key)
        windows = sample_windows(dataset, key_windows, num * num_candidates, horizon)
        mu = unroll(learner, state, windows.obs)
        log_priority = jnp.log(priorities(mu, windows.action, steepness, min_priority))
        chosen = jax.random.categorical(key_choice, log_priority, shape=(num,))
        return jax.tree.map(lambda leaf: leaf[chosen], windows)

    return Augmentation(sample, is_renewed=True)


def priorities(
    mu: Float[Array, "*batch H A U"], action: Float[Array, "*batch H A U"], steepness: float, min_priority: float
) -> Float[Array, "*batch"]:
    """The priority exp(-(steepness d)^2), at least `min_priority`, at a mean absolute difference d of joint actions."""
    distance = jnp.mean(jnp.abs(mu - action), axis=(-3, -2, -1))
    return jnp.maximum(jnp.exp(-((steepness * distance) ** 2)), min_priority)
