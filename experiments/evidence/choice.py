"""Choosing one of several trained policies by few online episodes: the value of the choice after k episodes.

Offline training gives many policies (seeds, settings), and the best is not known until they are played. As in Jackson
et al. (2025, "A Clean Slate for Offline Reinforcement Learning"), a bandit (UCB) plays one policy an episode; after k
episodes it chooses the policy with the highest mean so far, and scores that policy's true mean. At k = 1 this is the
mean of all policies, for large k the best one's.

A policy's episode return is drawn from a normal distribution with the mean and standard deviation that the run recorded
at its last evaluation. Their noise counts as a difference of the policies: the best recorded mean is optimistic.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.evidence.recorded_runs import Run
from experiments.host.plots import picture

NUM_EPISODES = 64
"""Most online episodes."""

TABLED = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of episodes in the table."""

TRIALS = 4000
"""Bandits behind an expected value."""

REPETITIONS = 400
"""Bootstrap samples of an interval."""

REPETITION_TRIALS = 60
"""Bandits of each bootstrap sample."""

CONFIDENCE = 0.95
"""Coverage of the intervals."""


class Policies(NamedTuple):
    """Trained policies by the returns of their episodes.

    mean: `[P]` mean return.
    std:  `[P]` standard deviation of an episode's return.
    run:  `[P]` index of the run that trained it; the bootstrap resamples within runs.
    """

    mean: Float[np.ndarray, "P"]
    std: Float[np.ndarray, "P"]
    run: Int[np.ndarray, "P"]


class Choice(NamedTuple):
    """Expected return `[K]` of the chosen policy after 1, ..., K episodes, and its 95 % interval."""

    value: Float[np.ndarray, "K"]
    low: Float[np.ndarray, "K"]
    high: Float[np.ndarray, "K"]


def policies_of(runs: Sequence[Run]) -> Policies | None:
    """The policies of all seeds of runs, at their last evaluation; None where a run recorded no spread of returns."""
    means, stds, owners = [], [], []
    for number, run in enumerate(runs):
        if "return_std" not in run.metrics:
            return None
        last = run.metrics["round"] == run.metrics["round"].max()
        means.append(run.metrics["return"][last])
        stds.append(run.metrics["return_std"][last])
        owners.append(np.full(int(last.sum()), number))
    return Policies(np.concatenate(means), np.concatenate(stds), np.concatenate(owners))


def bandit(
    mean: Float[np.ndarray, "R P"], std: Float[np.ndarray, "R P"], num_episodes: int, rng: np.random.Generator
) -> Float[np.ndarray, "R K"]:
    """Plays R bandits: the true mean of the policy that each would choose after 1, ..., K episodes.

    Each tries all policies once in random order, then plays the highest upper bound m + s sqrt(2 ln t / n), with m the
    mean of a policy's n episodes, t the episodes of all, and s the policies' root mean square `std`.
    """
    num_trials, num_policies = mean.shape
    trial = np.arange(num_trials)
    # The first policy goes round the trials, so that the mean over trials at k = 1 is that over policies, exactly.
    order = rng.permuted(np.tile(np.arange(num_policies), (num_trials, 1)), axis=1)
    first = trial % num_policies
    position = np.argmax(order == first[:, None], axis=1)
    order[trial, position], order[:, 0] = order[:, 0], first
    scale = np.sqrt(np.mean(std**2, axis=1, keepdims=True))
    total, count = np.zeros(mean.shape), np.zeros(mean.shape)
    value = np.empty((num_trials, num_episodes))
    for k in range(num_episodes):
        if k < num_policies:
            arm = order[:, k]
        else:
            arm = np.argmax(total / count + scale * np.sqrt(2 * np.log(k) / count), axis=1)
        total[trial, arm] += mean[trial, arm] + std[trial, arm] * rng.standard_normal(num_trials)
        count[trial, arm] += 1
        estimate = np.where(count > 0, total / np.maximum(count, 1), -np.inf)
        value[:, k] = mean[trial, np.argmax(estimate, axis=1)]
    return value


def choose(policies: Policies, num_episodes: int = NUM_EPISODES) -> Choice:
    """The expected return of the chosen policy, with a percentile interval that resamples policies within each run.

    The random numbers are fixed. For large k the interval reaches less above the value than below it: no bootstrap
    sample has a better policy than the best one.
    """
    rng, size = np.random.default_rng(0), len(policies.mean)

    def play(index: np.ndarray) -> np.ndarray:
        return bandit(policies.mean[index], policies.std[index], num_episodes, rng)

    value = play(np.tile(np.arange(size), (-(-TRIALS // size) * size, 1))).mean(axis=0)
    samples = [
        np.concatenate([rng.choice(own, len(own)) for own in _members(policies.run)]) for _ in range(REPETITIONS)
    ]
    trials = -(-REPETITION_TRIALS // size) * size
    repeated = [play(np.tile(sample, (trials, 1))).mean(axis=0) for sample in samples]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(repeated, [tail, 100 - tail], axis=0)
    return Choice(value, low, high)


def write_choice(runs: Sequence[Run], title: str, output: Path) -> str:
    """Writes the curves, `choice.png`, and returns the table as Markdown; empty where there is nothing to choose."""
    groups = [(run.label, [run]) for run in runs if len(run.summary["seeds"]) > 1]
    if len(runs) > 1:
        groups.append(("all runs", list(runs)))
    known = [(label, policies) for label, members in groups if (policies := policies_of(members)) is not None]
    if not known:
        return ""
    choices = [(f"{label} ({len(policies.mean)})", choose(policies)) for label, policies in known]
    episodes = np.arange(1, NUM_EPISODES + 1)
    with picture(output / "choice.png") as axes:
        for label, choice in choices:
            (line,) = axes.plot(episodes, choice.value, linewidth=1.8, label=label)
            axes.fill_between(episodes, choice.low, choice.high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(title=title, xlabel="online episodes", ylabel="expected return of the chosen policy", xscale="log")
        axes.legend(loc="best", fontsize=8, title="policies (number)")
    lines = [
        "",
        "## Expected return of the policy chosen by k online episodes",
        "",
        "A UCB bandit over the trained policies; in brackets a 95 % interval that resamples policies within runs.",
        "Episode returns are drawn from each policy's recorded mean and standard deviation.",
        "",
        f"| k | {' | '.join(label for label, _ in choices)} |",
        f"| --- |{' --- |' * len(choices)}",
    ]
    for k in TABLED:
        cells = [f"{c.value[k - 1]:.0f} [{c.low[k - 1]:.0f}, {c.high[k - 1]:.0f}]" for _, c in choices]
        lines.append(f"| {k} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _members(run: Int[np.ndarray, "P"]) -> list[np.ndarray]:
    return [np.flatnonzero(run == number) for number in np.unique(run)]
