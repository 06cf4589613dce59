"""Choosing between policies by online episodes, against closed forms."""

import csv
import math

import numpy as np
import pytest

from experiments import report
from experiments.evidence.choice import Policies, bandit, choose
from tests.experiments.test_report import keep_run

MEANS = np.array([10.0, 40.0, 20.0, 50.0, 30.0])


def played(means, stds, num_episodes, trials=4000):
    shape = (trials, len(means))
    mean, std = (np.broadcast_to(np.asarray(x, float), shape) for x in (means, stds))
    return bandit(mean, std, num_episodes, np.random.default_rng(0)).mean(axis=0)


def best_of(means, k: int) -> float:
    """The expected largest of k of the means without replacement: the j-th smallest is it C(j - 1, k - 1) times."""
    ordered, total = sorted(means), math.comb(len(means), k)
    return sum(m * math.comb(j, k - 1) for j, m in enumerate(ordered)) / total


@pytest.mark.parametrize("std", [0.0, 7.0])
def test_one_episode_gives_the_mean_of_the_policies_exactly(std):
    assert played(MEANS, [std] * 5, 1)[0] == pytest.approx(MEANS.mean(), abs=1e-9)


def test_without_noise_k_episodes_give_the_best_of_k():
    found = played(MEANS, [0.0] * 5, 12)
    expected = [best_of(MEANS, min(k, 5)) for k in range(1, 13)]
    np.testing.assert_allclose(found, expected, atol=0.6)  # three standard errors of 4,000 trials
    assert (found[4:] == MEANS.max()).all()


def test_two_noisy_policies_are_told_apart_as_often_as_they_should():
    """After an episode of each, the better one is chosen with probability Phi(delta / sqrt(s1^2 + s2^2))."""
    delta, stds = 1.0, (0.6, 0.8)
    right = 0.5 * (1 + math.erf(delta / math.hypot(*stds) / math.sqrt(2)))
    assert played([0.0, delta], stds, 2, trials=20_000)[1] == pytest.approx(right * delta, abs=0.008)


def test_many_episodes_find_the_best():
    found = played(MEANS, [15.0] * 5, 600, trials=500)
    assert found[-1] > MEANS.max() - 0.5
    assert found[-1] > found[50] > found[5] > found[0]


def test_intervals_are_those_of_the_mean_at_one_episode():
    """At k = 1 the bootstrap is that of a mean of 40 policies, whose standard error is known."""
    means = np.random.default_rng(1).normal(100.0, 10.0, 40)
    choice = choose(Policies(means, np.zeros(40), np.zeros(40, int)), num_episodes=2)
    reach = 1.96 * means.std() / math.sqrt(40)
    assert choice.value[0] == pytest.approx(means.mean(), abs=1e-9)
    assert choice.high[0] - choice.low[0] == pytest.approx(2 * reach, rel=0.12)


def test_policies_are_resampled_within_their_run():
    """Two runs of equal policies: nothing varies at one episode."""
    policies = Policies(np.repeat([1.0, 5.0], 3), np.zeros(6), np.repeat([0, 1], 3))
    choice = choose(policies, num_episodes=6)
    assert choice.low[0] == choice.high[0] == pytest.approx(3.0)
    assert choice.value[-1] == choice.low[-1] == choice.high[-1] == 5.0


def with_spread(run, std: float):
    """Adds the column `return_std` to a kept run."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (run / "metrics.csv").open("w") as file:
        writer = csv.DictWriter(file, [*rows[0], "return_std"], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "return_std": std} for row in rows)
    return run


def test_the_comparison_has_the_table_and_the_curve(tmp_path):
    runs = [with_spread(keep_run(tmp_path / n, n, o), 0.0) for n, o in (("coda", 50.0), ("none", 0.0))]
    for output in (tmp_path / "a", tmp_path / "b"):
        report.main([*map(str, runs), "--output", str(output)])
    table = (tmp_path / "a" / "comparison.md").read_text()
    assert "| k | CODA, mix 0.5, guidance 0.6 (3) | no augmentation (3) | all runs (6) |" in table
    assert "| 1 | 251 [" in table and "| 64 | 252 [" in table
    for name in ("comparison.md", "choice.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_runs_without_a_recorded_spread_have_no_such_table(tmp_path):
    report.main([str(keep_run(tmp_path / "coda", "coda", 0.0)), "--output", str(tmp_path / "out")])
    assert "online episodes" not in (tmp_path / "out" / "comparison.md").read_text()
    assert not (tmp_path / "out" / "choice.png").exists()
