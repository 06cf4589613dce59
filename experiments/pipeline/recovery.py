"""The trained learners of run folders, from their checkpoints; so the policies of runs older than `policy.npz` too.

The state of the learner holds the input scales beside the weights, so neither dataset nor denoiser is needed.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from coda_jax.artefact import ArtefactError
from coda_jax.data.conventions import OLD_WRAPPER
from coda_jax.envs import mamujoco
from coda_jax.marl.input_scale import InputScale
from coda_jax.marl.learner import Learner, LearnerState
from coda_jax.policy import FILE, Policy, PolicyWeights, load_policy
from coda_jax.types import TaskSpec
from experiments.host.checkpoints import (
    notes_if_intact,
    recorded_steps,
    single_device_template,
    step_folder,
    with_empty,
    without_empty,
)
from experiments.host.console import say, warn
from experiments.host.errors import UserError
from experiments.host.files import verify
from experiments.host.records import parse_mapping
from experiments.host.yaml_files import parse_yaml


def policy_of_run(run: Path) -> Policy:
    """The policies of a run folder or of a `policy.npz`; those of an older run are recovered, which is said.

    Raises:
        UserError: there are none, they cannot be read, or they are not those of the finished run.
    """
    if run.is_dir() and not (run / FILE).exists():
        if not (run / "checkpoints" / "train").is_dir():
            raise UserError(f"{run} has no {FILE}; give a run folder of experiments.mamujoco that has played a round")
        policy = recover_policy(run)
        say(f"the run has no {FILE}; its policies are those of the checkpoint of round {policy.rounds}")
        return policy
    try:
        verify_artefact(run / FILE if run.is_dir() else run)
        return load_policy(run)
    except ArtefactError as error:
        raise UserError(str(error)) from error


def verify_artefact(file: Path) -> None:
    """Compares a policy or a prior with the checksums of the finished run that it lies in, if it does.

    Raises:
        UserError: it is not the one that the run wrote.
    """
    if file.exists():
        verify(file, "restore it from a copy, or delete summary.json there and repeat the run's command")


def recover_policy(run: Path) -> Policy:
    """The policies in the latest intact checkpoint of a run folder of the main job, which is left as it is.

    Raises:
        UserError: no checkpoint is intact or holds the policies and their input scales, or `config.yaml` is damaged.
    """
    advice = "delete summary.json there, if there is one, and repeat the run's command to write policy.npz"
    step, folder = _latest_intact(run, advice)
    weights = _weights(folder)
    if weights is None:
        raise UserError(f"the checkpoints of {run} are too old: they hold no input scales; {advice}")
    fields = {"task": str, "seed": int, "num_seeds": int}
    config = parse_mapping(run / "config.yaml", parse_yaml, fields, advice)
    seeds = tuple(range(config["seed"], config["seed"] + config["num_seeds"]))
    return Policy(_spec_of(config["task"], weights), seeds, weights, step)


def trained_networks(run: Path, learner: Learner, num_seeds: int) -> LearnerState:
    """An actor-critic's states `[S, ...]` with policies, critics and input scales of a run's latest intact checkpoint.

    Target networks and optimisers are those of a new state.

    Raises:
        UserError: no checkpoint is intact, or its learner is another one.
    """
    advice = "repeat the run's command in a new folder"
    _, folder = _latest_intact(run, advice)
    state = jax.jit(jax.vmap(learner.init))(jax.random.split(jax.random.key(0), num_seeds))
    new = {"inputs": dict(vars(state.inputs)), "policy": state.policy, "critics": state.critics}
    template = {"learner": without_empty(new)}
    try:
        stored = _restored(folder, single_device_template(template, jax.devices()[0]))["learner"]
    except (ValueError, KeyError) as error:
        raise UserError(f"the learner in {folder.parent} is not that of the run's settings; {advice}") from error
    found = with_empty(new, stored)
    return dataclasses.replace(state, **{**found, "inputs": InputScale(**found["inputs"])})


def _latest_intact(run: Path, advice: str) -> tuple[int, Path]:
    """The latest intact checkpoint of a run: its round, and the folder of its arrays."""
    series = run / "checkpoints" / "train"
    for step in reversed(recorded_steps(series)):
        folder = step_folder(series.absolute(), step)
        if notes_if_intact(series, step) is not None:
            return step, folder / "default"
        warn(f"the checkpoint {folder} is damaged")
    raise UserError(f"{run} has no intact checkpoint; {advice}")


def _restored(folder: Path, template: Any) -> Any:
    """The part of a checkpoint that the template names."""
    handler: Any = ocp.PyTreeCheckpointHandler()  # it asks for a path of etils, and takes any
    args = ocp.checkpoint_utils.construct_restore_args(template)
    return handler.restore(folder, args=ocp.args.PyTreeRestore(item=template, restore_args=args, partial_restore=True))


def _weights(folder: Path) -> PolicyWeights | None:
    """The weights of all seeds on the first device; None where the learner's state has none of them."""
    handler: Any = ocp.PyTreeCheckpointHandler()
    stored = handler.metadata(folder)
    learner = getattr(stored, "tree", stored)["learner"]
    if not {"inputs", "policy"} <= set(learner):
        return None
    wanted = {"learner": {name: learner[name] for name in ("inputs", "policy")}}
    restored = _restored(folder, single_device_template(wanted, jax.devices()[0]))["learner"]
    inputs = restored["inputs"]
    return PolicyWeights(network=restored["policy"], obs_mean=inputs["obs_mean"], obs_std=inputs["obs_std"])


def _spec_of(task: str, weights: PolicyWeights) -> TaskSpec:
    """The task whose observations have the size of the input scales: a vault may be of the older wrapper."""
    candidates = [mamujoco.make(name).spec for name in (task, task + OLD_WRAPPER) if name in mamujoco.TASKS]
    for spec in candidates:
        if weights.obs_mean.shape[1:] == (spec.num_agents, spec.obs_dim):
            return spec
    raise UserError(f"no task {task} has agents and observations of shape {weights.obs_mean.shape[1:]}")
