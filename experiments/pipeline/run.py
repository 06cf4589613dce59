"""A run of `experiments.mamujoco`: data, prior, training; each step resumes where it was interrupted."""

import contextlib
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from coda_jax.data.conventions import Convention, load_vault
from coda_jax.data.dataset import Episodes, count_short_episodes, split_episodes, statistics
from coda_jax.data.vault import vault_digest
from coda_jax.data.vault_files import open_vault
from coda_jax.dynamics.saved import FILE as DYNAMICS_FILE
from coda_jax.dynamics.saved import save_dynamics
from coda_jax.envs import mamujoco
from coda_jax.envs.base import Environment
from coda_jax.prior import FILE as PRIOR_FILE
from coda_jax.prior import Prior, save_prior
from experiments.datasets.named import dataset_path, load_dataset
from experiments.evidence.naming import METHODS
from experiments.host.cache import cache_folder, enable_compilation_cache, flat, plain
from experiments.host.clock import Clock
from experiments.host.console import print_config, print_table, say, warn
from experiments.host.devices import own_part, set_up_devices
from experiments.host.errors import UserError
from experiments.host.hosts import check_shared, first_before_others, is_first, let_first_print
from experiments.host.loggers import logger
from experiments.host.plots import guidance_paths, learning_curve
from experiments.host.run_folder import RunFolder, default_run_dir, open_run_folder
from experiments.pipeline.fitting import Fit, fit_prior
from experiments.pipeline.learners import DEFAULT_ALGORITHM
from experiments.pipeline.quality import show_quality
from experiments.pipeline.settings import OF_OLDER_RUNS, PRESETS, ExperimentConfig, needs_denoiser
from experiments.pipeline.summary import SUMMARY
from experiments.pipeline.training import PHASES, make_job, train_policies

NOT_NUMBERS = ("run_dir", "log", "allow_other_devices", "coordinator", "num_processes", "process_id", "estimate")
"""Settings that do not change the numbers of a run."""


def identity_of(config: ExperimentConfig) -> dict[str, Any]:
    """All settings that determine a run's numbers."""
    return {name: value for name, value in plain(config).items() if name not in NOT_NUMBERS}


def run_dir_of(config: ExperimentConfig) -> Path:
    """The run folder that the settings name, by their differences from the preset: new settings change no name."""
    usual = flat(plain(PRESETS[config.preset]))
    return default_run_dir(
        task=config.task,
        dataset=str(config.vault or config.dataset),
        augmentation=config.augmentation,
        guidance=config.guidance,
        preset=config.preset,
        config={name: value for name, value in flat(identity_of(config)).items() if value != usual[name]},
    )


def run(config: ExperimentConfig) -> None:
    """Trains, or continues to train, and leaves a finished run folder.

    Raises:
        UserError: a run folder of other settings, an unsuitable vault, or NaNs in the training.
        VaultError: a vault that cannot be used.
    """
    with jax.default_matmul_precision(config.precision):
        _run(config)


def _run(config: ExperimentConfig) -> None:
    identity, path = identity_of(config), config.run_dir or run_dir_of(config)
    mesh = set_up_devices(config.num_seeds)
    let_first_print()
    enable_compilation_cache()
    check_shared(cache_folder(), "set CODA_JAX_CACHE to a folder")
    vault = None
    if config.vault is not None and not RunFolder(path).finished:
        vault = load_vault(config.task, config.vault, config.data.max_transitions)
    with open_run_folder(
        path,
        identity,
        num_devices=mesh.size,
        allow_other_devices=config.allow_other_devices,
        defaults=identity_of(OF_OLDER_RUNS),
    ) as folder:
        say(f"run folder: {path}")
        if folder.finished:
            compare_dataset(config, folder)
        else:
            print_config(identity)
            _train(config, vault, mesh, folder)
        if is_first():
            show(folder.read_summary(SUMMARY))


def compare_dataset(config: ExperimentConfig, folder: RunFolder) -> None:
    """Compares the digest of the dataset with that of the run folder, if the dataset is on this machine."""
    if not is_first():
        return
    path = config.vault or dataset_path(config.task, config.dataset, config.data.num_episodes)
    if path.exists():
        folder.check_dataset(vault_digest(open_vault(path)))
    elif config.vault is not None:
        warn(f"{path} no longer exists, so it is not compared with the data of the run")


def load_data(config: ExperimentConfig, mesh: Mesh) -> tuple[Environment, Episodes]:
    """The environment and the episodes that the settings name."""
    if config.vault is not None:
        convention, episodes = load_vault(config.task, config.vault, config.data.max_transitions)
        return convention.env, episodes
    env = mamujoco.make(config.task)
    with first_before_others():
        return env, load_dataset(env, config.dataset, config.data.num_episodes, own_part(mesh))


def fit_episodes(
    config: ExperimentConfig, env: Environment, episodes: Episodes, mesh: Mesh, is_fitted: bool = True
) -> Fit:
    """Splits the episodes, and fits the prior to those for training.

    Raises:
        UserError: too few episodes, or a fit that fails.
    """
    try:
        train, held_out = split_episodes(episodes, config.data.held_out_fraction)
    except ValueError as error:
        raise UserError(f"the dataset cannot be split: {error}") from error
    return fit_prior(config, env.spec, train, held_out, mesh, is_fitted)


def _train(config: ExperimentConfig, vault: tuple[Convention, Episodes] | None, mesh: Mesh, folder: RunFolder) -> None:
    clock = Clock(PHASES)
    if vault is None:
        convention = None
        env, episodes = load_data(config, mesh)
    else:
        convention, episodes = vault
        env = convention.env
        say(f"vault: {convention.description}; replayed steps miss by {convention.error:.1g} deviations")
        for repair in convention.ends.repairs:
            say(f"vault: {repair}")
    compare_dataset(config, folder)
    card = statistics(episodes)
    horizon = config.training.horizon
    num_short, num_ends = count_short_episodes(episodes.terminal, episodes.truncation, horizon)
    short = f"; {num_short} of them, with {num_ends} true ends, are shorter than {horizon} steps and in no window"
    say(
        f"dataset: {card['num_episodes']} episodes, {card['num_transitions']} steps, return "
        f"{card['return_mean']:.0f} +- {card['return_std']:.0f} "
        f"[{card['return_min']:.0f}, {card['return_max']:.0f}]{short if num_short else ''}"
    )
    if config.augmentation != "none":
        training = config.training
        say(f"mini-batches: {training.synthetic_per_batch} of {training.batch_size} trajectories are synthetic")
    clock.lap("collect")
    fit = fit_episodes(config, env, episodes, mesh, needs_denoiser(config))
    del vault, episodes  # a large vault stays on the devices only
    if isinstance(fit.prior, Prior) and is_first():
        save_prior(folder.path / PRIOR_FILE, fit.model, fit.prior)
        say(f"denoiser: loss on held-out episodes {fit.held_out_loss:.4f}")
    if fit.dynamics is not None and is_first():
        save_dynamics(folder.path / DYNAMICS_FILE, env.spec, config.dynamics, fit.dynamics)
    clock.lap("fit")
    with folder.checkpoints("train") as checkpoints, contextlib.ExitStack() as stack:
        if config.log is not None and is_first():
            folder.metrics.listeners.append(
                stack.enter_context(logger(config.log, folder.path, flat(identity_of(config))))
            )
        trained = train_policies(make_job(config, env, fit, mesh), folder, checkpoints, clock)
    if not is_first():
        return
    identity = identity_of(config)
    summary = {
        **{name: identity[name] for name in ("task", "dataset", "vault", "augmentation", "algorithm", "guidance")},
        **trained,
        "convention": None if convention is None else convention.description,
        "synthetic_per_batch": 0 if config.augmentation == "none" else config.training.synthetic_per_batch,
        "dataset_mean_return": card["return_mean"],
        "dataset_best_return": card["return_max"],
        "denoiser_held_out_loss": fit.held_out_loss,
    }
    learning_curve(
        folder.figures / "learning_curve.png",
        f"{config.task} {config.vault or config.dataset}, {METHODS[config.augmentation]}, {config.algorithm}",
        folder.metrics.read(),
        card["return_mean"],
        card["return_max"],
    )
    _draw_guidance(config, folder)
    folder.write_summary(summary)


def _draw_guidance(config: ExperimentConfig, folder: RunFolder) -> None:
    """Draws the path of lambda of a guided run; a run that was begun by an older version may not have recorded it."""
    metrics, columns = folder.metrics.read(), ("updates", "guidance", "action_spread")
    if not set(columns) <= set(metrics):
        return
    updates, scale, spread = (metrics[column].reshape(-1, config.num_seeds) for column in columns)
    guidance_paths(
        folder.figures / "guidance.png",
        f"{config.task} {config.vault or config.dataset}",
        updates[:-1, 0],
        {METHODS[config.augmentation]: (scale[1:], spread[1:])},
        config.guidance_target if config.guidance == "auto" else None,
    )


def show(summary: dict[str, Any]) -> None:
    """Prints the results of a finished run as a small table."""
    returns = summary["returns_per_seed"]
    rows = [
        {"seed": str(seed), "return": f"{value:.0f}"} for seed, value in zip(summary["seeds"], returns, strict=True)
    ]
    error = summary["standard_error"]
    spread = "" if error is None else f" +- {error:.0f} s.e."
    rows.append({"seed": "mean", "return": f"{summary['mean']:.0f}{spread}"})
    rows.append({"seed": "dataset, mean episode", "return": f"{summary['dataset_mean_return']:.0f}"})
    algorithm = summary.get("algorithm", DEFAULT_ALGORITHM)  # older runs lack the field
    augmentation = METHODS[summary["augmentation"]]
    title = f"{summary['task']} {summary['vault'] or summary['dataset']}, {augmentation}, {algorithm}"
    print_table(f"{title}: return after {summary['updates']} updates", rows)
    if summary["sample_quality"] is not None:
        show_quality(summary["sample_quality"])
