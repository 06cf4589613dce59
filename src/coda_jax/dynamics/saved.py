"""Fitted one-step models as files."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp

from coda_jax.artefact import ArtefactError, from_plain, read_artefact, write_artefact
from coda_jax.dynamics.ensemble import Dynamics, DynamicsConfig, DynamicsModel, init_dynamics, make_dynamics
from coda_jax.types import TaskSpec

FILE = "dynamics.npz"
"""Name of the file in a run folder."""


def save_dynamics(path: str | os.PathLike[str], spec: TaskSpec, config: DynamicsConfig, dynamics: Dynamics) -> None:
    """Writes a fitted ensemble, its task and its settings as one `.npz`, atomically; `load_dynamics` reads it.

    Examples:
        >>> import pathlib, tempfile
        >>> from coda_jax.envs.coordination import same_side
        >>> from numpy import array, zeros
        >>> episodes = cj.episodes_from_arrays(
        ...     state=zeros((8, 3)), obs=zeros((8, 2, 2)), action=zeros((8, 2, 1)), reward=zeros(8),
        ...     terminal=zeros(8), truncation=array([0, 0, 0, 1, 0, 0, 0, 1]),
        ... )
        >>> dataset = cj.make_dataset(episodes, 3)
        >>> spec, config = same_side().spec, cj.DynamicsConfig(widths=(8,), num_updates=2, batch_size=4)
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "dynamics.npz"
        >>> cj.save_dynamics(file, spec, config, cj.make_dynamics(spec, config).fit(dataset, jax.random.key(0)))
        >>> model, dynamics = cj.load_dynamics(file)
        >>> model.predict(dynamics, jnp.zeros((5, 3)), jnp.zeros((5, 2, 1))).state.shape
        (5, 3)
    """
    description = {"spec": dataclasses.asdict(spec), "config": dataclasses.asdict(config)}
    arrays = {field.name: getattr(dynamics, field.name) for field in dataclasses.fields(dynamics)}
    write_artefact(path, "dynamics", description, arrays)


def load_dynamics(run: str | os.PathLike[str]) -> tuple[DynamicsModel, Dynamics]:
    """Reads a fitted ensemble, ready for `predict`, `learned_environment` and `model_rollouts`.

    Args:
        run: a run folder with `--consequences model`, or a file that `save_dynamics` wrote.

    Raises:
        ArtefactError: there is none, or it cannot be read.

    Examples:
        >>> import pathlib, tempfile
        >>> from coda_jax.envs.coordination import same_side
        >>> from numpy import array, zeros
        >>> episodes = cj.episodes_from_arrays(
        ...     state=zeros((8, 3)), obs=zeros((8, 2, 2)), action=zeros((8, 2, 1)), reward=zeros(8),
        ...     terminal=zeros(8), truncation=array([0, 0, 0, 1, 0, 0, 0, 1]),
        ... )
        >>> dataset = cj.make_dataset(episodes, 3)
        >>> spec, config = same_side().spec, cj.DynamicsConfig(widths=(8,), num_updates=2, batch_size=4)
        >>> run = pathlib.Path(tempfile.mkdtemp())
        >>> dynamics = cj.make_dynamics(spec, config).fit(dataset, jax.random.key(0))
        >>> cj.save_dynamics(run / "dynamics.npz", spec, config, dynamics)
        >>> model, dynamics = cj.load_dynamics(run)
        >>> model.predict(dynamics, jnp.zeros((5, 3)), jnp.zeros((5, 2, 1))).state.shape
        (5, 3)
    """
    path = Path(run)
    path = path / FILE if path.is_dir() else path
    description, arrays = read_artefact(path, "dynamics")
    try:
        spec, config = TaskSpec(**description["spec"]), from_plain(DynamicsConfig(), description["config"])
        dynamics = Dynamics(**jax.tree.map(jnp.asarray, {"reward_params": {}, **arrays}))
        expected = jax.eval_shape(lambda key: init_dynamics(spec, config, key), jax.random.key(0))
        if jax.tree.map(jnp.shape, expected) != jax.tree.map(jnp.shape, dynamics):
            raise ValueError("its weights are not those of its networks")
        if not ((dynamics.input_std > 0).all() and (dynamics.target_std >= 0).all()):
            raise ValueError("its standard deviations are not positive")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"{path} is no one-step model ({' '.join(str(error).split())})") from error
    return make_dynamics(spec, config), dynamics
