"""Loading of episodes: vaults of OG-MARL, and the named datasets.

Named datasets are rolled out from the behaviour teams in MJX at first use, and stored in the cache as vaults.
"""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from coda_jax.data.conventions import OLD_WRAPPER, Convention, convention_name, read_in_convention, recognise
from coda_jax.data.dataset import Episodes, concatenate
from coda_jax.data.teams import (
    NOISE,
    Teams,
    assets,
    load_teams,
    recorder,
    schedule_of,
    snapshots_at,
    to_episodes,
)
from coda_jax.data.vault import read_vault, write_vault
from coda_jax.data.vault_files import open_vault
from coda_jax.envs import mamujoco
from coda_jax.envs.base import Environment
from coda_jax.envs.mamujoco import TASKS
from experiments.host.cache import cache_folder, key_of, lock
from experiments.host.console import phase
from experiments.host.errors import UserError

ENVS_PER_DEVICE = 16
"""Environments per device; constant, so that the data do not depend on the number of devices."""

_SEEDED_DATASETS = ("replay", "good", "medium", "poor")
"""The named datasets; the index of a dataset is its random seed."""


def load_vault(task: str, path: Path, max_transitions: int | None = None) -> tuple[Convention, Episodes]:
    """Reads a vault of a task, or a part of it, and recognises its convention.

    Args:
        task: a task, for vaults of both conventions; or a task with the suffix `-ogmarl`, for vaults of the old only.
        path: the vault.
        max_transitions: see `read_episodes`.

    Raises:
        VaultError: the vault cannot be used, or fits neither convention.
        UserError: the vault fits the other convention.
    """
    opened = open_vault(path)
    robot = task.removesuffix(OLD_WRAPPER)
    names = [name for name in TASKS if name == robot or name.startswith(f"{robot}-")]
    convention = recognise(opened, {name: mamujoco.make(name) for name in names})
    if task != robot and convention.task != task:
        raise UserError(
            f"vault {opened.path} is of {convention.description}, not of {convention_name(task)}; give --task {robot}"
        )
    return convention, read_in_convention(opened, convention, max_transitions)


def load_dataset(env: Environment, name: str, num_episodes: int, mesh: Mesh) -> Episodes:
    """Returns the episodes of a named dataset; builds its vault if the cache does not have it."""
    task = env.spec.name
    recipe: dict[str, Any] = {
        "task": task,
        "dataset": name,
        "num_episodes": num_episodes,
        "noise": NOISE,
        "robot": repr(TASKS[task][0]),
        "teams": hashlib.sha256(assets(task).read_bytes()).hexdigest(),
    }
    teams = load_teams(assets(task))
    schedule = schedule_of(teams, task, name, num_episodes)
    if name != "replay":
        recipe["snapshots"] = np.unique(schedule, axis=0).tolist()
    path = cache_folder() / "datasets" / task / f"{name.capitalize()}.vlt" / key_of(recipe)
    if not path.exists():
        with lock(path, f"the dataset {task} {name}"):
            if not path.exists():  # another process may have built it in the meantime
                write_vault(path, record(env, teams, schedule, mesh, _SEEDED_DATASETS.index(name)), recipe)
    return read_vault(path, env.spec)


def record(env: Environment, teams: Teams, schedule: Int[np.ndarray, "N 2"], mesh: Mesh, seed: int) -> Episodes:
    """Rolls out snapshots with exploration noise, one environment per snapshot, for the length of the time limit.

    Environments are reset when an episode ends early.

    Args:
        env: the task.
        teams: the behaviour teams of the task.
        schedule: the (team, snapshot) of each environment.
        mesh: the devices for the rollouts; the episodes do not depend on their number.
        seed: the random seed.
    """
    num_rollouts, chunk = len(schedule), ENVS_PER_DEVICE * mesh.size
    # The last chunk is padded with rollouts that are discarded, so that all chunks have the same compiled shape.
    padded = schedule[np.arange(-(-num_rollouts // chunk) * chunk) % num_rollouts]

    shards = PartitionSpec("seed")
    roll_out = recorder(env, teams.width, NOISE)
    record_chunk = jax.jit(
        jax.shard_map(
            lambda weights, keys: jax.tree.map(lambda leaf: leaf[None], roll_out(weights, keys[0])),
            mesh=mesh,
            in_specs=(shards, shards),
            out_specs=shards,
            check_vma=False,
        )
    )
    keys = list(jax.random.split(jax.random.key(seed), len(padded) // ENVS_PER_DEVICE).reshape(-1, mesh.size))
    parts: list[Episodes] = []
    with phase(f"rolling out {num_rollouts} episodes", total=num_rollouts) as progress:
        for first, chunk_keys in zip(range(0, len(padded), chunk), keys, strict=True):
            weights = snapshots_at(teams, padded[first : first + chunk])
            arguments = jax.device_put((weights, chunk_keys), NamedSharding(mesh, shards))
            recorded = jax.device_get(record_chunk(*arguments))
            for device in range(mesh.size):
                num_kept = min(ENVS_PER_DEVICE, num_rollouts - first - device * ENVS_PER_DEVICE)
                if num_kept > 0:
                    parts.append(to_episodes(jax.tree.map(lambda leaf, d=device, n=num_kept: leaf[d][:, :n], recorded)))
            progress.advance(min(chunk, num_rollouts - first))
    return concatenate(parts)
