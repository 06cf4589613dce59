"""The tasks of the comparison: environment, recorded episodes, and what the end of an episode shows of a convention."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.data import reacher
from coda_jax.data.coordination import SameSideData, convention_episodes
from coda_jax.data.dataset import Episodes
from coda_jax.data.reacher import ReacherData, learned_reacher_episodes, reacher_episodes, reacher_return
from coda_jax.data.spread import SpreadData, spread_episodes, spread_return
from coda_jax.data.teams import assets, joined_episodes, load_teams
from coda_jax.envs import mamujoco
from coda_jax.envs.base import Environment
from coda_jax.envs.coordination import convention_return, same_side
from coda_jax.envs.simple_spread import EXPERT_RETURN, RANDOM_RETURN, nearest_landmarks, simple_spread


class CoordinationTask(NamedTuple):
    """A task of the comparison.

    env:               the environment.
    record:            rolls out the recorded episodes; the key is consumed.
    learned_teams:     file of the learned teams that record them; None for scripted teams.
    convention_return: mean return of a team of one convention without noise.
    published:         returns of random and of expert play in the literature, which are 0 and 1 on its scale.
    reward_unit:       methods learn from rewards divided by this.
    reward_inputs:     what the reward depends on alone, as in `DynamicsConfig`.
    ends:              states `[E, S]` at the ends of E episodes -> what shows their conventions. Same side: the agents'
                       positions. Spread: the index of each agent's nearest landmark. Reacher: the angle of the elbow
                       and the distance from the target.
    """

    env: Environment
    record: Callable[[jax.Array], Episodes]
    learned_teams: Path | None
    convention_return: Callable[[], float]
    published: tuple[float, float] | None
    reward_unit: float
    reward_inputs: tuple[int, ...]
    ends: Callable[[Float[Array, "E S"]], Float[Array, "E K"]]


def make_task(data: SameSideData | SpreadData | ReacherData, dataset: str) -> CoordinationTask:
    """The task of which these are the data.

    Args:
        data: the task, and sizes and noise of the data.
        dataset: `scripted`, or the level of the learned teams that record the episodes of spread and Reacher.
    """
    match data:
        case SpreadData():
            env = simple_spread(data.num_agents)

            def record(key: jax.Array) -> Episodes:
                if dataset == "scripted":
                    return spread_episodes(data, key)
                teams = load_teams(assets("spread"))
                return joined_episodes(env, teams, dataset, data.num_episodes, data.noise, key)

            return CoordinationTask(
                env=env,
                record=record,
                learned_teams=None if dataset == "scripted" else assets("spread"),
                convention_return=lambda: spread_return(data.num_agents),
                published=(RANDOM_RETURN, EXPERT_RETURN) if data.num_agents == 3 else None,
                reward_unit=10.0 * data.num_agents,  # the largest reward of a step
                # The state holds the agents' positions, their velocities, the landmarks' positions, and the time.
                reward_inputs=tuple(k for k in range(6 * data.num_agents) if k // (2 * data.num_agents) != 1),
                ends=lambda state: nearest_landmarks(state).astype(float),
            )
        case ReacherData():

            def record_reacher(key: jax.Array) -> Episodes:
                scripted = dataset == "scripted"
                return reacher_episodes(data, key) if scripted else learned_reacher_episodes(data, dataset, key)

            return CoordinationTask(
                env=mamujoco.make(data.task),
                record=record_reacher,
                learned_teams=None if dataset == "scripted" else assets(reacher.TEAMS),
                convention_return=lambda: reacher_return(data.task),
                published=(reacher.RANDOM_RETURN, reacher.EXPERT_RETURN),
                reward_unit=1.0,
                reward_inputs=(8, 9, 10, 11),  # the offset from the target, and the torques
                ends=lambda state: jnp.stack(
                    [jnp.arctan2(state[:, 3], state[:, 1]), jnp.hypot(state[:, 8], state[:, 9])], axis=-1
                ),
            )
        case SameSideData():
            return CoordinationTask(
                env=same_side(data.task),
                record=lambda key: convention_episodes(data, key),
                learned_teams=None,
                convention_return=lambda: convention_return(data.task),
                published=None,
                reward_unit=1.0,
                reward_inputs=tuple(range(data.task.num_agents)),
                ends=lambda state: state[:, : data.task.num_agents],
            )
