"""Offline data of simple spread: scripted teams, each of which shares out the landmarks by a convention, or mixes them.

By convention k, agent i goes to landmark (i + k) mod A. So the agents of two teams of different conventions, put
together, can go to the same landmark and leave another one without an agent.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jaxtyping import Array, Float, Int

from coda_jax.data.coordination import draw_conventions
from coda_jax.data.dataset import Episodes, episode_returns
from coda_jax.data.teams import to_episodes
from coda_jax.envs.rollout import Act, rollout
from coda_jax.envs.simple_spread import EPISODE_LENGTH, simple_spread
from coda_jax.ranges import Count, NonNegative, Ranged, RangeError, Share
from coda_jax.types import PRNGKey

GAIN, BRAKE = 2.0, 1.0
"""An agent's action is GAIN times the offset to its landmark minus BRAKE times its velocity, within [-1, 1]."""


@dataclasses.dataclass(frozen=True)
class SpreadData(Ranged):
    """The dataset of simple spread: scripted teams of several conventions."""

    num_agents: Annotated[int, Interval(ge=2, le=10)] = 3
    """A."""
    num_conventions: Annotated[int, Interval(ge=1, le=10)] = 2
    """Conventions, in equal shares; at most A."""
    num_episodes: Count = 2000
    """Episodes."""
    coverage: Share = 0.0
    """Share of episodes in which every agent draws its convention for itself, in [0, 1]."""
    noise: NonNegative = 0.3
    """Standard deviation of the Gaussian noise on actions, which are then clipped to [-1, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_conventions > self.num_agents:
            raise RangeError("num_conventions", self.num_conventions, f"there are {self.num_agents}, one an agent")


def spread_episodes(config: SpreadData, key: PRNGKey) -> Episodes:
    """Rolls out scripted teams, with noise, from random starts. The key is consumed.

    The numbers of episodes of each kind are the shares, rounded, and the kinds stand in random order.
    """
    key_convention, key_rollout = jax.random.split(key)
    act = scripted_team(landmarks_of(config, key_convention), config.noise)
    env = simple_spread(config.num_agents)
    return to_episodes(rollout(env, act, (), key_rollout, config.num_episodes, EPISODE_LENGTH))


def landmarks_of(config: SpreadData, key: PRNGKey) -> Int[Array, "N A"]:
    """The landmark of each agent in each episode. The key is consumed."""
    sizes = config.num_episodes, config.num_agents, config.num_conventions
    convention = draw_conventions(*sizes, config.coverage, key)
    return (jnp.arange(config.num_agents)[None] + convention) % config.num_agents


def scripted_team(landmark: Int[Array, "N A"], noise: float) -> Act:
    """A joint policy over N environments whose agents go to the given landmarks, with Gaussian noise."""

    def act(obs: Float[Array, "N A O"], carry: tuple[()], key: PRNGKey) -> tuple[Float[Array, "N A U"], tuple[()]]:
        num_agents = obs.shape[1]
        velocity, offsets = obs[..., :2], obs[..., 4 : 4 + 2 * num_agents].reshape(*obs.shape[:2], num_agents, 2)
        offset = jnp.take_along_axis(offsets, landmark[..., None, None], axis=2)[:, :, 0]
        action = jnp.clip(GAIN * offset - BRAKE * velocity, -1.0, 1.0)
        return jnp.clip(action + noise * jax.random.normal(key, action.shape), -1.0, 1.0), carry

    return act


def spread_return(num_agents: int, num_episodes: int = 2000) -> float:
    """The mean return of scripted teams of one convention without noise, from fixed random starts."""
    config = SpreadData(num_agents, num_conventions=1, num_episodes=num_episodes, noise=0.0)
    return float(episode_returns(spread_episodes(config, jax.random.key(0))).mean())
