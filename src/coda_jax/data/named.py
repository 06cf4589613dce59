"""The named datasets (`replay`, `good`, `medium`, `poor`), rolled out from a task's behaviour teams in MJX."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from coda_jax.backend import full_precision, sizes
from coda_jax.data.dataset import Episodes, concatenate
from coda_jax.data.teams import (
    NOISE,
    Teams,
    assets,
    load_teams,
    named_datasets,
    recorder,
    schedule_of,
    snapshots_at,
    to_episodes,
)
from coda_jax.envs import mamujoco
from coda_jax.envs.base import Environment
from coda_jax.envs.rollout import Rollout
from coda_jax.types import Params, PRNGKey

GROUP = 16
"""Episodes that share a key; fixed, so that the data do not depend on the number of devices or on the backend."""

STREAMS = ("replay", "good", "medium", "poor")
"""Each named dataset has random numbers of its own: its place in this list is their seed."""


def named_dataset(task: str, dataset: str, num_episodes: int, mesh: Mesh | None = None) -> Episodes:
    """Rolls out a named dataset; the same arguments give the same episodes on the same machine.

    Args:
        task: a task with behaviour teams, such as `2halfcheetah`.
        dataset: one of `coda_jax.data.teams.named_datasets(task)`.
        num_episodes: episodes at the length of the time limit.
        mesh: the devices to spread them over; the first device by default.

    Raises:
        ValueError: the task has no such dataset.

    Examples:
        >>> cj.named_dataset("2halfcheetah", "no such level", 400)
        Traceback (most recent call last):
        ValueError: task 2halfcheetah has no dataset 'no such level'; known: replay, good, medium, poor
    """
    if dataset not in named_datasets(task):
        known = ", ".join(named_datasets(task)) or "none, as there are no behaviour teams"
        raise ValueError(f"task {task} has no dataset '{dataset}'; known: {known}")
    if mesh is None:
        mesh = jax.make_mesh((1,), ("seed",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    teams = load_teams(assets(task))
    schedule = schedule_of(teams, task, dataset, num_episodes)
    return record(mamujoco.make(task), teams, schedule, mesh, STREAMS.index(dataset))


def record(
    env: Environment,
    teams: Teams,
    schedule: Int[np.ndarray, "N 2"],
    mesh: Mesh,
    seed: int,
    on_progress: Callable[[int], None] = lambda num_episodes: None,
) -> Episodes:
    """Rolls out snapshots with exploration noise, each in an environment of its own for the length of the time limit.

    Where episodes end earlier, others follow in the same environment.

    Args:
        env: the task.
        teams: its behaviour teams.
        schedule: the (team, snapshot) of each environment.
        mesh: the devices to spread them over; the episodes do not depend on their number.
        seed: of the random numbers.
        on_progress: called on the host with the number of episodes after each chunk.
    """
    num_rollouts = len(schedule)
    # Groups of episodes that a device rolls out together: no more than there are.
    groups = min(max(1, sizes().episodes // GROUP), -(-num_rollouts // (GROUP * mesh.size)))
    chunk = GROUP * groups * mesh.size
    # The last chunk is filled up with rollouts that are dropped, so that all have one compiled shape.
    padded = schedule[np.arange(-(-num_rollouts // chunk) * chunk) % num_rollouts]
    record_chunk = _record_chunk(env, teams.width, mesh)
    keys = jax.random.split(jax.random.key(seed), len(padded) // GROUP)
    parts: list[Episodes] = []
    for first in range(0, len(padded), chunk):
        weights = snapshots_at(teams, padded[first : first + chunk].reshape(-1, GROUP, 2))
        arguments = (weights, keys[first // GROUP : (first + chunk) // GROUP])
        arguments = jax.device_put(arguments, NamedSharding(mesh, PartitionSpec("seed")))
        recorded = jax.device_get(record_chunk(*arguments))
        for group in range(groups * mesh.size):
            wanted = min(GROUP, num_rollouts - first - group * GROUP)
            if wanted > 0:
                parts.append(to_episodes(jax.tree.map(lambda leaf, g=group, n=wanted: leaf[g][:, :n], recorded)))
        on_progress(min(chunk, num_rollouts - first))
    return concatenate(parts)


def _record_chunk(env: Environment, width: int, mesh: Mesh) -> Callable[[Params, PRNGKey], Rollout]:
    """(weights `[G, 16, ...]`, keys `[G]`) -> the rollouts of G groups `[G, T, 16, ...]`, spread over the mesh."""
    shards = PartitionSpec("seed")
    roll_out = full_precision(recorder(env, width, NOISE))

    def of_device(weights: Params, keys: PRNGKey) -> Rollout:
        if keys.shape[0] == 1:  # without the axis of groups, a batched product less on a CPU
            return jax.tree.map(lambda leaf: leaf[None], roll_out(jax.tree.map(lambda leaf: leaf[0], weights), keys[0]))
        return jax.vmap(roll_out)(weights, keys)

    return jax.jit(jax.shard_map(of_device, mesh=mesh, in_specs=(shards, shards), out_specs=shards, check_vma=False))
