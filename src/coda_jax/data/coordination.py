"""Offline data of coordination tasks: scripted teams, each of which keeps to a convention, or mixes them."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from coda_jax.data.dataset import Episodes
from coda_jax.data.teams import to_episodes
from coda_jax.envs.coordination import EPISODE_LENGTH, SameSide, same_side
from coda_jax.envs.rollout import rollout
from coda_jax.ranges import Count, NonNegative, Ranged, Share
from coda_jax.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class SameSideData(Ranged):
    """The dataset of the task same side: teams that move all up, all down, or each agent in a direction of its own."""

    task: SameSide = dataclasses.field(default_factory=SameSide)
    """The task."""
    num_episodes: Count = 2000
    """Episodes."""
    coverage: Share = 0.2
    """Share of episodes in which every agent draws its direction for itself: mixed conventions, in [0, 1]."""
    up_share: Share = 0.5
    """Share of up-teams among the other episodes, in [0, 1]."""
    noise: NonNegative = 0.3
    """Standard deviation of the Gaussian noise on actions, which are then clipped to [-1, 1]."""


def convention_episodes(config: SameSideData, key: PRNGKey) -> Episodes:
    """Rolls out scripted teams at full speed, with noise, from random starts. The key is consumed.

    The numbers of episodes of each kind are the shares, rounded, and the kinds stand in random order.
    """
    key_direction, key_rollout = jax.random.split(key)
    direction = _directions(config, key_direction)

    def act(obs: Array, carry: tuple[()], key: PRNGKey) -> tuple[Array, tuple[()]]:
        del obs
        noise = config.noise * jax.random.normal(key, (*direction.shape, 1))
        return jnp.clip(direction[..., None] + noise, -1.0, 1.0), carry

    env = same_side(config.task)
    return to_episodes(rollout(env, act, (), key_rollout, config.num_episodes, EPISODE_LENGTH))


def draw_conventions(
    num_episodes: int, num_agents: int, num_conventions: int, coverage: float, key: PRNGKey
) -> Int[Array, "N A"]:
    """The number of the convention that each agent keeps to in each episode. The key is consumed.

    Teams of each convention are equally frequent; in a share `coverage` of the episodes every agent draws its own.
    """
    key_mixed, key_order = jax.random.split(key)
    num_mixed = round(coverage * num_episodes)
    agreed = jnp.arange(num_episodes - num_mixed) % num_conventions
    agreed = jnp.broadcast_to(agreed[:, None], (len(agreed), num_agents))
    mixed = jax.random.randint(key_mixed, (num_mixed, num_agents), 0, num_conventions)
    return jax.random.permutation(key_order, jnp.concatenate([agreed, mixed]))


def _directions(config: SameSideData, key: PRNGKey) -> Float[Array, "N A"]:
    """The direction -1 or 1 that each agent keeps to in each episode."""
    key_mixed, key_order = jax.random.split(key)
    num_mixed = round(config.coverage * config.num_episodes)
    num_agreed = config.num_episodes - num_mixed
    num_up = round(config.up_share * num_agreed)
    agreed = jnp.where(jnp.arange(num_agreed) < num_up, 1.0, -1.0)
    mixed = jax.random.rademacher(key_mixed, (num_mixed, config.task.num_agents), jnp.float32)
    agreed = jnp.broadcast_to(agreed[:, None], (num_agreed, config.task.num_agents))
    return jax.random.permutation(key_order, jnp.concatenate([agreed, mixed]))
