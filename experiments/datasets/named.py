"""The named datasets, rolled out on first use and kept in the cache as vaults."""

import hashlib
from typing import Any

import numpy as np
from jax.sharding import Mesh

from coda_jax.data.dataset import Episodes
from coda_jax.data.named import STREAMS, record
from coda_jax.data.teams import NOISE, assets, load_teams, schedule_of
from coda_jax.data.vault import read_vault, write_vault
from coda_jax.envs.base import Environment
from coda_jax.envs.mamujoco import TASKS
from experiments.host.cache import backend_identity, cache_folder, key_of, lock
from experiments.host.console import phase


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
        **backend_identity(),
    }
    teams = load_teams(assets(task))
    schedule = schedule_of(teams, task, name, num_episodes)
    if name != "replay":
        recipe["snapshots"] = np.unique(schedule, axis=0).tolist()
    path = cache_folder() / "datasets" / task / f"{name.capitalize()}.vlt" / key_of(recipe)
    if not path.exists():
        with lock(path, f"the dataset {task} {name}"):
            if not path.exists():  # another process may have built it meanwhile
                with phase(f"rolling out {num_episodes} episodes", total=num_episodes) as progress:
                    episodes = record(env, teams, schedule, mesh, STREAMS.index(name), progress.advance)
                write_vault(path, episodes, recipe)
    return read_vault(path, env.spec)
