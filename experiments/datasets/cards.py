"""The named datasets beside the published ones: a table, and a histogram of episode returns a dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from coda_jax.data.dataset import Episodes, episode_returns, statistics
from coda_jax.data.published import PUBLISHED_CARDS
from coda_jax.data.teams import NOISE, assets, level_snapshots, load_teams, named_datasets
from coda_jax.envs import mamujoco
from experiments.datasets.named import load_dataset
from experiments.host.files import write_atomically
from experiments.host.plots import returns_histogram

CLOSE = 0.1
"""A mean return within this share of the published one is called close."""


class Built(NamedTuple):
    """A dataset that was rolled out."""

    task: str
    dataset: str
    returns: np.ndarray
    """Of its episodes."""
    num_transitions: int
    saturation: float
    """Share of the actions at a bound."""
    sources: str
    """Which snapshots of the teams it is from."""


def write_cards(output: Path, tasks: Sequence[str], num_episodes: int, mesh: Mesh) -> str:
    """Rolls out missing datasets, and writes the table to `output` and the pictures into `datasets` beside it.

    Returns:
        The table.
    """
    pictures = output.parent / "datasets"
    pictures.mkdir(parents=True, exist_ok=True)
    built = []
    for task in tasks:
        env = mamujoco.make(task)
        for dataset in named_datasets(task):
            built.append(describe(task, dataset, load_dataset(env, dataset, num_episodes, mesh)))
            returns_histogram(
                pictures / f"{task}_{dataset}.png",
                f"{task} {dataset}: {len(built[-1].returns)} episodes",
                built[-1].returns,
                PUBLISHED_CARDS.get((task, dataset)),
            )
    table = markdown(built)
    write_atomically(output, table)
    return table


def describe(task: str, dataset: str, episodes: Episodes) -> Built:
    """A dataset in numbers."""
    teams = load_teams(assets(task))
    if dataset == "replay":
        sources = f"all {teams.returns.shape[1]} snapshots of {teams.returns.shape[0]} teams"
    else:
        snapshots = level_snapshots(teams, PUBLISHED_CARDS[task, dataset].mean)
        sources = ", ".join(
            f"{teams.returns[team, snapshot]:.0f} ({teams.num_steps[snapshot] / 1000:.0f}k)"
            for team, snapshot in enumerate(snapshots)
        )
    card = statistics(episodes)
    return Built(
        task=task,
        dataset=dataset,
        returns=episode_returns(episodes),
        num_transitions=int(card["num_transitions"]),
        saturation=card["action_saturation"],
        sources=sources,
    )


def markdown(built: Sequence[Built]) -> str:
    """The table, its explanation, and the pictures."""
    lines = [
        "# The named datasets beside the published ones",
        "",
        "Made by `python -m experiments.data cards`: rolled out in MJX from the committed behaviour teams, with",
        f"Gaussian noise of std {NOISE} on the actions, all teams in equal parts. For `good`, `medium` and `poor` each",
        "team gives the snapshot whose return without noise is nearest the published mean; `replay` takes the",
        "snapshots of all of training.",
        "",
        "| dataset | episodes | steps | return, mean +- sd [min, max] | published | mean against published "
        "| actions at a bound | snapshots: return without noise (environment steps) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in built:
        published = PUBLISHED_CARDS.get((one.task, one.dataset))
        cells = [
            f"{one.task} {one.dataset}",
            f"{len(one.returns):,}",
            f"{one.num_transitions:,}",
            _spread(one.returns.mean(), one.returns.std(), one.returns.min(), one.returns.max()),
            "" if published is None else _spread(*published),
            "" if published is None else _verdict(one.returns.mean() / published.mean - 1),
            f"{100 * one.saturation:.0f} %",
            one.sources,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"![{one.task} {one.dataset}](datasets/{one.task}_{one.dataset}.png)" for one in built)]
    return "\n".join(lines) + "\n"


def _spread(mean: float, std: float, low: float, high: float) -> str:
    return f"{mean:,.0f} +- {std:,.0f} [{low:,.0f}, {high:,.0f}]"


def _verdict(difference: float) -> str:
    word = "close" if abs(difference) <= CLOSE else "above" if difference > 0 else "below"
    return f"{100 * difference:+.0f} %, {word}"
