"""Comparison of the named datasets with the published ones: a table, and a histogram of episode returns per dataset."""

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
"""Largest relative difference from the published mean return that is called close."""


class DatasetCard(NamedTuple):
    """Statistics of a named dataset."""

    task: str
    dataset: str
    returns: np.ndarray
    """Returns of its episodes."""
    num_transitions: int
    saturation: float
    """Fraction of the actions at a bound."""
    sources: str
    """The snapshots of the teams, in words."""


def write_cards(output: Path, tasks: Sequence[str], num_episodes: int, mesh: Mesh) -> str:
    """Rolls out missing datasets, and writes the table to `output` and the pictures into `datasets` beside it.

    Returns:
        The table.
    """
    figures = output.parent / "datasets"
    figures.mkdir(parents=True, exist_ok=True)
    cards = []
    for task in tasks:
        env = mamujoco.make(task)
        for dataset in named_datasets(task):
            cards.append(describe(task, dataset, load_dataset(env, dataset, num_episodes, mesh)))
            returns_histogram(
                figures / f"{task}_{dataset}.png",
                f"{task} {dataset}: {len(cards[-1].returns)} episodes",
                cards[-1].returns,
                PUBLISHED_CARDS.get((task, dataset)),
            )
    table = markdown(cards)
    write_atomically(output, table)
    return table


def describe(task: str, dataset: str, episodes: Episodes) -> DatasetCard:
    """Computes the statistics of a dataset."""
    teams = load_teams(assets(task))
    if dataset == "replay":
        sources = f"all {teams.returns.shape[1]} snapshots of {teams.returns.shape[0]} teams"
    else:
        snapshots = level_snapshots(teams, PUBLISHED_CARDS[task, dataset].mean)
        sources = ", ".join(
            f"{teams.returns[team, snapshot]:.0f} ({teams.num_steps[snapshot] / 1000:.0f}k)"
            for team, snapshot in enumerate(snapshots)
        )
    stats = statistics(episodes)
    return DatasetCard(
        task=task,
        dataset=dataset,
        returns=episode_returns(episodes),
        num_transitions=int(stats["num_transitions"]),
        saturation=stats["action_saturation"],
        sources=sources,
    )


def markdown(cards: Sequence[DatasetCard]) -> str:
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
    for card in cards:
        published = PUBLISHED_CARDS.get((card.task, card.dataset))
        cells = [
            f"{card.task} {card.dataset}",
            f"{len(card.returns):,}",
            f"{card.num_transitions:,}",
            _mean_std_range(card.returns.mean(), card.returns.std(), card.returns.min(), card.returns.max()),
            "" if published is None else _mean_std_range(*published),
            "" if published is None else _compared(card.returns.mean() / published.mean - 1),
            f"{100 * card.saturation:.0f} %",
            card.sources,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"![{card.task} {card.dataset}](datasets/{card.task}_{card.dataset}.png)" for card in cards)]
    return "\n".join(lines) + "\n"


def _mean_std_range(mean: float, std: float, low: float, high: float) -> str:
    return f"{mean:,.0f} +- {std:,.0f} [{low:,.0f}, {high:,.0f}]"


def _compared(difference: float) -> str:
    word = "close" if abs(difference) <= CLOSE else "above" if difference > 0 else "below"
    return f"{100 * difference:+.0f} %, {word}"
