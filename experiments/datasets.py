"""The named datasets: rolled out from the behaviour teams in MJX on first use, kept in the cache as vaults."""

import hashlib

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from coda_jax.data.dataset import Episodes, concatenate
from coda_jax.data.teams import (
    REPLAY_NOISE,
    assets,
    load_teams,
    recorder,
    replay_schedule,
    snapshots_at,
    to_episodes,
)
from coda_jax.data.vault import read_vault, write_vault
from coda_jax.envs.mamujoco import TASKS, Environment
from coda_jax.marl.matd3 import Matd3Config
from experiments.cache import cache_folder, key_of, lock, plain
from experiments.console import phase

ENVS_PER_DEVICE = 16
"""Episodes rolled out together on a device; fixed, so that the data do not depend on the number of devices."""


def load_dataset(env: Environment, name: str, num_episodes: int, mesh: Mesh) -> Episodes:
    """Returns the episodes of a named dataset, building its vault first where the cache lacks it."""
    task = env.spec.name
    recipe = {
        "task": task,
        "dataset": name,
        "num_episodes": num_episodes,
        "noise": REPLAY_NOISE,
        "robot": plain(TASKS[task][0]),
        "teams": hashlib.sha256(assets(task).read_bytes()).hexdigest(),
    }
    path = cache_folder() / "datasets" / task / f"{name.capitalize()}.vlt" / key_of(recipe)
    if not path.exists():
        with lock(path, f"the dataset {task} {name}"):
            if not path.exists():  # another process may have built it meanwhile
                write_vault(path, record_replay(env, num_episodes, mesh), recipe)
    return read_vault(path, env.spec)


def record_replay(env: Environment, num_episodes: int, mesh: Mesh) -> Episodes:
    """Rolls out snapshots of all teams, evenly over their training, with exploration noise."""
    teams = load_teams(assets(env.spec.name))
    schedule = replay_schedule(teams, num_episodes)
    chunk = ENVS_PER_DEVICE * mesh.size
    # The last chunk is filled up with episodes that are dropped, so that all have one compiled shape.
    padded = schedule[np.arange(-(-num_episodes // chunk) * chunk) % num_episodes]

    shards = PartitionSpec("seed")
    record = recorder(env, Matd3Config().width, REPLAY_NOISE)
    record_chunk = jax.jit(
        jax.shard_map(
            lambda weights, keys: jax.tree.map(lambda leaf: leaf[None], record(weights, keys[0])),
            mesh=mesh,
            in_specs=(shards, shards),
            out_specs=shards,
            check_vma=False,
        )
    )
    keys = jax.random.split(jax.random.key(0), len(padded) // ENVS_PER_DEVICE)
    parts: list[Episodes] = []
    with phase(f"rolling out {num_episodes} episodes", total=num_episodes) as progress:
        for first in range(0, len(padded), chunk):
            weights = snapshots_at(teams, padded[first : first + chunk])
            chunk_keys = keys[first // ENVS_PER_DEVICE :][: mesh.size]
            arguments = jax.device_put((weights, chunk_keys), NamedSharding(mesh, shards))
            recorded = jax.device_get(record_chunk(*arguments))
            parts += [to_episodes(jax.tree.map(lambda leaf, d=d: leaf[d], recorded)) for d in range(mesh.size)]
            progress.advance(min(chunk, num_episodes - first))
    return first_episodes(concatenate(parts), num_episodes)


def first_episodes(episodes: Episodes, num_episodes: int) -> Episodes:
    """The first so many episodes."""
    end = episodes.bounds[num_episodes]
    return jax.tree.map(lambda leaf: leaf[:end], episodes)
