"""Behaviour teams: the committed policies that generate the named datasets.

The teams of a task were trained online by MATD3 with different seeds. Snapshots of their training are stored in
`assets/{task}.npz` as half-precision weights with leading axes (team, snapshot), without pickle.
"""

import importlib.resources
from collections.abc import Callable
from pathlib import Path
from typing import cast

import chex
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from coda_jax.data.dataset import Episodes, episodes_from_arrays
from coda_jax.data.published import PUBLISHED_CARDS
from coda_jax.envs.base import Environment
from coda_jax.envs.rollout import Rollout, rollout
from coda_jax.marl.matd3 import team_policy
from coda_jax.types import Params, PRNGKey

NOISE = 0.2
"""Standard deviation of the exploration noise in the named datasets (published protocol)."""


@chex.dataclass(frozen=True)
class Teams:
    """The snapshots of a task's behaviour teams.

    policy:    weights of `marl.matd3.TeamPolicy`; leaves are `[teams, snapshots, ...]`.
    num_steps: `[snapshots]` environment steps of training before each snapshot.
    returns:   `[teams, snapshots]` mean return of each snapshot without noise.
    """

    policy: Params
    num_steps: Int[np.ndarray, "snapshots"]
    returns: Float[np.ndarray, "teams snapshots"]

    @property
    def width(self) -> int:
        """Number of units of the policies' hidden layers."""
        return self.policy["params"]["Dense_0"]["bias"].shape[-1]


def assets(task: str) -> Path:
    """Path of the file with the teams of a task."""
    return Path(str(importlib.resources.files("coda_jax.data"))) / "assets" / f"{task}.npz"


def save_teams(path: Path, teams: Teams) -> None:
    """Saves teams, with weights in half precision."""
    weights = flax.traverse_util.flatten_dict(teams.policy, sep="/")
    np.savez_compressed(
        path,
        allow_pickle=False,
        num_steps=np.asarray(teams.num_steps),
        returns=np.asarray(teams.returns, np.float32),
        **{name: np.asarray(leaf, np.float16) for name, leaf in weights.items()},
    )


def load_teams(path: Path) -> Teams:
    """Loads teams, with weights in single precision.

    Raises:
        FileNotFoundError: `path` does not exist.
    """
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    num_steps, returns = arrays.pop("num_steps"), arrays.pop("returns")
    weights = {name: leaf.astype(np.float32) for name, leaf in arrays.items()}
    return Teams(policy=flax.traverse_util.unflatten_dict(weights, sep="/"), num_steps=num_steps, returns=returns)


def replay_schedule(teams: Teams, num_episodes: int) -> Int[np.ndarray, "num_episodes 2"]:
    """The (team, snapshot) of each episode of `replay`: equal numbers per team, snapshots evenly over training."""
    num_teams, num_snapshots = teams.returns.shape
    episode = np.arange(num_episodes)
    episodes_per_team = -(-num_episodes // num_teams)
    snapshot = (episode // num_teams + 0.5) * num_snapshots / episodes_per_team
    return np.stack([episode % num_teams, snapshot.astype(int)], axis=1)


def level_snapshots(teams: Teams, level: float) -> Int[np.ndarray, "teams"]:
    """The snapshot of each team whose return without noise is nearest to a level."""
    return np.argmin(np.abs(teams.returns - level), axis=1)


def level_schedule(teams: Teams, level: float, num_episodes: int) -> Int[np.ndarray, "num_episodes 2"]:
    """The (team, snapshot) of each episode of a dataset of one level: equal numbers per team, one snapshot per team."""
    team = np.arange(num_episodes) % teams.returns.shape[0]
    return np.stack([team, level_snapshots(teams, level)[team]], axis=1)


def training_snapshots(teams: Teams, level: str) -> Int[np.ndarray, "teams"]:
    """The snapshot of each team at a level of its training, as in the public datasets of MPE (Pan et al., 2022).

    Args:
        teams: the teams.
        level: `random` (before training), `expert` (the highest return), or `medium` (nearest to the middle of both).

    Raises:
        KeyError: there is no such level.
    """
    first, best = teams.returns[:, 0], teams.returns.max(axis=1)
    wanted = {"expert": best, "medium": (first + best) / 2.0, "random": first}[level]
    # The first of those equally near, so `random` is the untrained policy.
    return np.argmin(np.abs(teams.returns - wanted[:, None]), axis=1)


def joined_episodes(
    env: Environment, teams: Teams, level: str, num_episodes: int, noise: float, key: PRNGKey
) -> Episodes:
    """Episodes of all teams at a level of their training, in equal numbers: as many conventions as teams differ in.

    Args:
        env: the task.
        teams: its teams.
        level: see `training_snapshots`.
        num_episodes: episodes.
        noise: standard deviation of the Gaussian noise on actions, which are then clipped to [-1, 1].
        key: consumed.
    """
    team = np.arange(num_episodes) % len(teams.returns)
    schedule = np.stack([team, training_snapshots(teams, level)[team]], axis=1)
    return to_episodes(jax.jit(recorder(env, teams.width, noise))(snapshots_at(teams, schedule), key))


def named_datasets(task: str) -> tuple[str, ...]:
    """The named datasets of a task; empty if the task has no behaviour teams."""
    if not assets(task).exists():
        return ()
    return ("replay", *(name for known, name in PUBLISHED_CARDS if known == task and name != "replay"))


def schedule_of(teams: Teams, task: str, dataset: str, num_episodes: int) -> Int[np.ndarray, "num_episodes 2"]:
    """The (team, snapshot) of each episode of a named dataset.

    For `good`, `medium` and `poor`, the level is the mean return of the published dataset.
    """
    if dataset == "replay":
        return replay_schedule(teams, num_episodes)
    return level_schedule(teams, PUBLISHED_CARDS[task, dataset].mean, num_episodes)


def snapshots_at(teams: Teams, schedule: Int[np.ndarray, "*N 2"]) -> Params:
    """The weights for N (team, snapshot) pairs; leaves are `[*N, ...]`."""
    return jax.tree.map(lambda leaf: leaf[schedule[..., 0], schedule[..., 1]], teams.policy)


def recorder(env: Environment, width: int, noise: float) -> Callable[[Params, PRNGKey], Rollout]:
    """Returns a pure function that rolls out N snapshots, one environment per snapshot, for the length of an episode.

    Args:
        env: the task.
        width: number of units of the teams' hidden layers.
        noise: standard deviation of the Gaussian noise on actions, which are then clipped to [-1, 1].

    Returns:
        (weights `[N, ...]`, key) -> rollout `[T, N, ...]`; the key is consumed.
    """
    policy = team_policy(env.spec, width)
    apply = cast(Callable[..., Array], policy.apply)

    def record(weights: Params, key: PRNGKey) -> Rollout:
        num_envs = jax.tree.leaves(weights)[0].shape[0]

        def act(obs: Array, carry: tuple[()], key: PRNGKey) -> tuple[Array, tuple[()]]:
            mu = jax.vmap(apply)(weights, obs)
            return jnp.clip(mu + noise * jax.random.normal(key, mu.shape), -1.0, 1.0), carry

        return rollout(env, act, (), key, num_envs, env.spec.episode_length)

    return record


def to_episodes(recorded: Rollout) -> Episodes:
    """Lays the N environments of a rollout one after the other; unfinished episodes end by truncation."""
    steps = jax.tree.map(lambda leaf: np.moveaxis(np.asarray(leaf), 1, 0), recorded.steps)
    truncated = np.moveaxis(np.array(recorded.truncated), 1, 0)
    truncated[:, -1] = np.where(steps.terminal[:, -1] == 0, 1.0, truncated[:, -1])

    def flat(leaf: np.ndarray) -> np.ndarray:
        return leaf.reshape(-1, *leaf.shape[2:])

    return episodes_from_arrays(
        state=flat(steps.state),
        obs=flat(steps.obs),
        action=flat(steps.action),
        reward=flat(steps.reward),
        terminal=flat(steps.terminal),
        truncation=flat(truncated),
    )
