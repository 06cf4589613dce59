"""Datasets: `python -m experiments.data inspect|download|convert|cards|film`.

inspect   prints the contents of a vault and its convention
download  fetches OG-MARL's vaults of a scenario from the Hugging Face hub
convert   writes an old vault anew, in today's layout and convention
cards     compares the named datasets with the published ones
film      renders the best behaviour team of a task
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import tyro

from coda_jax.data.conventions import OLD_WRAPPER, load_vault, recognise, to_task
from coda_jax.data.dataset import count_short_episodes
from coda_jax.data.survey import Survey, survey
from coda_jax.data.teams import named_datasets
from coda_jax.data.vault import write_vault
from coda_jax.data.vault_files import OpenVault, VaultError, open_vault
from coda_jax.envs import mamujoco
from coda_jax.envs.rendering import RenderingError
from coda_jax.ranges import Count, Ranged
from coda_jax.schedule import CodaConfig
from experiments.datasets.cards import write_cards
from experiments.datasets.download import download_vaults
from experiments.datasets.film import check_film, film
from experiments.host.cache import enable_compilation_cache
from experiments.host.console import print_histogram, say
from experiments.host.devices import set_up_devices
from experiments.host.errors import UserError, one_line_errors, parse_command
from experiments.host.help_text import choices
from experiments.pipeline.settings import DataConfig, check_choice

CONVERTIBLE = tuple(name for name in mamujoco.TASKS if not name.endswith(OLD_WRAPPER))
WITH_TEAMS = tuple(name for name in mamujoco.TASKS if named_datasets(name))
"""Tasks with behaviour teams, and so with named datasets."""


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Prints the contents of a vault, and the convention of its steps."""

    vault: Annotated[Path, tyro.conf.Positional]
    """The vault: its folder, such as `.../Replay.vlt`, or the vault's folder inside it."""


@dataclasses.dataclass(frozen=True)
class Download:
    """Downloads OG-MARL's vaults of a scenario; the same command resumes an interrupted download."""

    scenario: Annotated[str, tyro.conf.Positional]
    """Environment and scenario, such as `gymnasium_mamujoco/2halfcheetah` or `mamujoco/2halfcheetah`."""
    output: Path = Path("vaults")
    """Parent folder of `ENVIRONMENT/SCENARIO.vlt`."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Converts a vault to the current layout and convention; the old vault is kept."""

    vault: Annotated[Path, tyro.conf.Positional]
    """The vault to convert."""
    output: Path
    """Folder of the new vault, such as `2halfcheetah.vlt/Good`."""
    task: Annotated[str, choices(CONVERTIBLE)] = "2halfcheetah"
    """Task of the vault, by its current name."""


@dataclasses.dataclass(frozen=True)
class Cards(Ranged):
    """Compares the named datasets of every task that has behaviour teams with the published datasets."""

    output: Path = Path("results/DATASETS.md")
    """File for the table; the histograms are written to `datasets` beside it."""
    num_episodes: Count = DataConfig().num_episodes
    """Number of episodes of each dataset."""


@dataclasses.dataclass(frozen=True)
class Film:
    """Renders 10 s of the best behaviour team of a task; needs OpenGL (set MUJOCO_GL=egl)."""

    output: Path
    """File for the video, `.gif`, `.webp` or `.mp4` (needs ffmpeg), or for a strip of frames, `.png`."""
    task: Annotated[str, choices(WITH_TEAMS)] = "2halfcheetah"
    """A task that has behaviour teams."""


Command = (
    Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Download, tyro.conf.subcommand("download")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Cards, tyro.conf.subcommand("cards")]
    | Annotated[Film, tyro.conf.subcommand("film")]
)


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        command: Inspect | Download | Convert | Cards | Film = parse_command(cast(Any, Command), args)
        match command:
            case Inspect():
                inspect(command)
            case Download():
                download(command)
            case Convert():
                convert(command)
            case Cards():
                cards(command)
            case Film():
                render_team(command)


def inspect(command: Inspect) -> None:
    """Prints the statistics and the convention of a vault."""
    enable_compilation_cache()
    opened = open_vault(command.vault)
    vault = survey(opened)
    say(str(opened.path))
    for name, value in card(opened, vault).items():
        say(f"  {name:<31} {value}")
    say("returns of the episodes:")
    print_histogram(vault.returns)
    for line in describe_convention(opened):
        say(line)


def card(opened: OpenVault, vault: Survey) -> dict[str, str]:
    """The statistics of a vault, by name, as `inspect` prints them."""
    shapes = {
        name: f"[{', '.join(map(str, (1, opened.length, *leaf.shape[2:])))}] {leaf.arrays[0].dtype.name}"
        + (", one array per agent" if leaf.is_per_agent else "")
        for name, leaf in opened.leaves.items()
    }
    returns, lengths = vault.returns[np.isfinite(vault.returns)], vault.lengths
    spread = (
        f"{returns.mean():,.1f} +- {returns.std():,.1f} [{returns.min():,.1f}, {returns.max():,.1f}]"
        if len(returns)
        else "none is finite"
    )
    nans = ", ".join(f"{name} {count:,}" for name, count in vault.num_nan.items() if count)
    return {
        **shapes,
        "steps": f"{opened.length:,}",
        "episodes": f"{len(lengths):,}, of {lengths.min():,} to {lengths.max():,} steps",
        "ends stored": f"{vault.num_terminal:,} terminal, {vault.num_truncated:,} truncated",
        "return, mean +- sd [min, max]": spread,
        "NaN or infinite": nans or "none",
        "actions at a bound": f"{100 * vault.saturation:.1f} %",
        "actions outside [-1, 1]": f"{vault.num_out_of_bounds:,}",
        "steps of unequal rewards": f"{vault.num_unequal_rewards:,}",
    }


def describe_convention(opened: OpenVault) -> list[str]:
    """The convention of a vault and the check of its episodes' ends, or the reason why it is unusable, in lines."""
    sizes = opened.sizes
    candidates = {}
    for name in mamujoco.TASKS:
        env = mamujoco.make(name)
        spec = env.spec
        if (spec.num_agents, spec.obs_dim, spec.action_dim) == (sizes["A"], sizes["O"], sizes["U"]):
            candidates[name] = env
    if not candidates:
        return ["convention: no task has " + ", ".join(f"{name}={size}" for name, size in sizes.items() if name != "S")]
    try:
        convention = recognise(opened, candidates)
    except VaultError as error:
        return [f"unusable: {error}"]
    ends, horizon = convention.ends, CodaConfig().horizon
    num_short, num_true_ends = count_short_episodes(ends.terminal, ends.truncation, horizon)
    return [
        f"convention: {convention.description}; median error of steps simulated in MJX {convention.error:.1g} standard "
        "deviations",
        f"ends checked in MJX: {ends.terminal.sum():,} terminal, {ends.truncation.sum():,} truncated",
        *(f"repaired: {repair}" for repair in ends.repairs),
        f"episodes shorter than a window of {horizon} steps: {num_short:,}, with {num_true_ends:,} true ends",
    ]


def download(command: Download) -> None:
    """Downloads vaults."""
    environment, slash, scenario = command.scenario.partition("/")
    if not (slash and environment and scenario) or not all(
        part.replace("_", "").replace("-", "").isalnum() for part in (environment, scenario)
    ):
        raise UserError(
            f"'{command.scenario}' is not ENVIRONMENT/SCENARIO; give one such as gymnasium_mamujoco/2halfcheetah"
        )
    say(f"downloading the vaults of {command.scenario} (a few hundred megabytes or more) to {command.output}")
    path = download_vaults(environment, scenario, command.output)
    for vault in sorted(path.iterdir()):
        say(f"vault: {vault}")


def convert(command: Convert) -> None:
    """Converts a vault."""
    check_choice("--task", command.task, CONVERTIBLE)
    if command.output.exists():
        raise UserError(f"--output {command.output} exists; give the path of a new folder")
    enable_compilation_cache()
    convention, episodes = load_vault(command.task, command.vault)
    episodes = to_task(episodes, convention, command.task, mamujoco.make(command.task))
    provenance = {"converted_from": str(command.vault), "convention": convention.description}
    if not write_vault(command.output, episodes, provenance):
        raise UserError(f"--output {command.output} exists; give the path of a new folder")
    say(f"{len(episodes.reward):,} steps of {convention.description} written to {command.output}")


def cards(command: Cards) -> None:
    """Compares the named datasets with the published ones."""
    if command.output.is_dir():
        raise UserError(f"--output {command.output} is a folder; give the path of a file")
    mesh = set_up_devices(4)
    enable_compilation_cache()
    say(write_cards(command.output, WITH_TEAMS, command.num_episodes, mesh).rstrip())


def render_team(command: Film) -> None:
    """Renders a behaviour team."""
    check_choice("--task", command.task, WITH_TEAMS)
    check_film("--output", command.output)
    enable_compilation_cache()
    try:
        best, num_frames = film(command.task, command.output)
    except RenderingError as error:
        raise UserError(str(error)) from error
    say(f"{num_frames} frames of a {command.task} team with return {best:,.0f}: {command.output}")


if __name__ == "__main__":
    main()
