"""A run of the main job: data, prior, training, each picked up where an interrupted run left it."""

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from coda_jax.data.conventions import Convention, load_vault
from coda_jax.data.dataset import Episodes, split_episodes, statistics
from coda_jax.envs import mamujoco
from coda_jax.envs.base import Environment
from experiments.datasets.named import load_dataset
from experiments.host.cache import enable_compilation_cache, flat, plain
from experiments.host.clock import Clock
from experiments.host.console import print_config, print_table, say
from experiments.host.devices import set_up_devices
from experiments.host.errors import UserError
from experiments.host.plots import learning_curve
from experiments.host.run_folder import RunFolder, default_run_dir, open_run_folder
from experiments.pipeline.fitting import Fit, fit_prior
from experiments.pipeline.quality import show_quality
from experiments.pipeline.settings import PRESETS, ExperimentConfig, uses
from experiments.pipeline.training import PHASES, make_job, train_policies

NOT_NUMBERS = ("run_dir", "allow_other_devices")
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
        UserError: a folder or a vault that does not fit, or NaNs on the way.
        VaultError: a vault that cannot be used.
    """
    with jax.default_matmul_precision(config.precision):
        _run(config)


def _run(config: ExperimentConfig) -> None:
    identity, path = identity_of(config), config.run_dir or run_dir_of(config)
    mesh = set_up_devices(config.num_seeds)
    enable_compilation_cache()
    vault = None
    if config.vault is not None and not RunFolder(path).finished:
        vault = load_vault(config.task, config.vault, config.data.max_transitions)
    with open_run_folder(
        path,
        identity,
        num_devices=mesh.size,
        allow_other_devices=config.allow_other_devices,
        defaults=identity_of(PRESETS[config.preset]),
    ) as folder:
        say(f"run folder: {path}")
        if not folder.finished:
            print_config(identity)
            _train(config, vault, mesh, folder)
        show(folder.read_summary())


def load_data(config: ExperimentConfig, mesh: Mesh) -> tuple[Environment, Episodes]:
    """The environment and the episodes that the settings name."""
    if config.vault is not None:
        convention, episodes = load_vault(config.task, config.vault, config.data.max_transitions)
        return convention.env, episodes
    env = mamujoco.make(config.task)
    return env, load_dataset(env, config.dataset, config.data.num_episodes, mesh)


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
    card = statistics(episodes)
    say(
        f"dataset: {card['num_episodes']} episodes, {card['num_transitions']} steps, return "
        f"{card['return_mean']:.0f} +- {card['return_std']:.0f} "
        f"[{card['return_min']:.0f}, {card['return_max']:.0f}]"
    )
    clock.lap("collect")
    fit = fit_episodes(config, env, episodes, mesh, uses(config.augmentation, "fit_seed"))
    del vault, episodes  # a large vault stays on the devices only
    if fit.held_out_loss is not None:
        say(f"denoiser: loss on held-out episodes {fit.held_out_loss:.4f}")
    clock.lap("fit")
    with folder.checkpoints("train") as checkpoints:
        trained = train_policies(make_job(config, env, fit, mesh), folder, checkpoints, clock)
    identity = identity_of(config)
    summary = {
        **{name: identity[name] for name in ("task", "dataset", "vault", "augmentation", "guidance")},
        **trained,
        "convention": None if convention is None else convention.description,
        "dataset_mean_return": card["return_mean"],
        "dataset_best_return": card["return_max"],
        "denoiser_held_out_loss": fit.held_out_loss,
    }
    learning_curve(
        folder.figures / "learning_curve.png",
        f"{config.task} {config.vault or config.dataset}, {config.augmentation}",
        folder.metrics.read(),
        card["return_mean"],
        card["return_max"],
    )
    folder.write_summary(summary)


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
    title = f"{summary['task']} {summary['vault'] or summary['dataset']}, {summary['augmentation']}"
    print_table(f"{title}: return after {summary['updates']} updates", rows)
    if summary["sample_quality"] is not None:
        show_quality(summary["sample_quality"])
