"""The named datasets, rolled out on first use and kept in the cache as vaults."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from coda_jax.data.dataset import Episodes
from coda_jax.data.named import STREAMS, record
from coda_jax.data.teams import NOISE, assets, load_teams, schedule_of
from coda_jax.data.vault import VaultError, read_vault, write_vault
from coda_jax.envs.base import Environment
from coda_jax.envs.mamujoco import TASKS
from experiments.host.cache import backend_identity, cache_folder, cache_key, lock, quarantine
from experiments.host.console import phase
from experiments.host.files import reserve


def load_dataset(env: Environment, name: str, num_episodes: int, mesh: Mesh) -> Episodes:
    """Returns the episodes of a named dataset; builds its vault if the cache does not have it."""
    task = env.spec.name
    path, recipe = _entry(task, name, num_episodes)
    with contextlib.suppress(VaultError):
        return _read(path, env)
    with lock(path, f"the dataset {task} {name}"):
        try:  # another process may have built it meanwhile
            return _read(path, env)
        except VaultError:
            if path.exists():
                quarantine(path, "its vault cannot be read, or does not match its checksums")
        teams = load_teams(assets(task))
        schedule = schedule_of(teams, task, name, num_episodes)
        with phase(f"rolling out {num_episodes} episodes", total=num_episodes) as progress:
            episodes = record(env, teams, schedule, mesh, STREAMS.index(name), progress.advance)
        path.parent.mkdir(parents=True, exist_ok=True)
        reserve(path.parent, 2 * sum(array.nbytes for array in jax.tree.leaves(episodes)))  # ends are stored per agent
        write_vault(path, episodes, recipe)
    return _read(path, env)


def _read(path: Path, env: Environment) -> Episodes:
    """Reads a vault of the cache, whose checksums are in its card.

    Raises:
        VaultError: it does not exist, is damaged, or lacks its card.
    """
    if not (path / "card.json").exists():
        raise VaultError(f"vault {path} has no card")
    return read_vault(path, env.spec)


def dataset_path(task: str, name: str, num_episodes: int) -> Path:
    """Path of the vault of a named dataset in the cache, whether it has been built or not."""
    return _entry(task, name, num_episodes)[0]


def _entry(task: str, name: str, num_episodes: int) -> tuple[Path, dict[str, Any]]:
    """The path of a named dataset, and all that determines its episodes."""
    recipe: dict[str, Any] = {
        "task": task,
        "dataset": name,
        "num_episodes": num_episodes,
        "noise": NOISE,
        "robot": repr(TASKS[task][0]),
        "teams": hashlib.sha256(assets(task).read_bytes()).hexdigest(),
        **backend_identity(),
    }
    if name != "replay":
        schedule = schedule_of(load_teams(assets(task)), task, name, num_episodes)
        recipe["snapshots"] = np.unique(schedule, axis=0).tolist()
    path = cache_folder() / "datasets" / task / f"{name.capitalize()}.vlt" / cache_key(recipe)
    return path, recipe
