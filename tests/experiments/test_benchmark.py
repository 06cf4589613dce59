import json
import time

import pytest

from experiments.benchmark import Figure, best_times, relative_speeds
from experiments.evidence import benchmark_gate
from experiments.evidence.benchmark_gate import check_gate, read_baseline, yardstick
from experiments.host.errors import UserError


def test_the_gate_fails_only_for_lower_speeds():
    baseline = {"learner updates, 4 seeds": 2.0, "guided trajectories": 1.0}
    fast = {"learner updates, 4 seeds": 1.5, "guided trajectories": 3.0}
    check_gate(fast, baseline, tolerance=0.3)
    with pytest.raises(SystemExit) as exit_:
        check_gate({**fast, "learner updates, 4 seeds": 1.3, "new": 0.1}, baseline, tolerance=0.3)
    assert exit_.value.code == "slower than committed: learner updates, 4 seeds: 0.65 of the committed speed"
    with pytest.raises(SystemExit, match="guided trajectories: not measured"):
        check_gate({"learner updates, 4 seeds": 2.0}, baseline, tolerance=0.3)


def test_relative_speeds_of_rates_and_durations():
    figures = [Figure("steps", 50.0), Figure("seconds to compile", 4.0, is_duration=True)]
    assert relative_speeds(figures, 100.0) == {"steps": 0.5, "seconds to compile": 0.0025}


def test_the_yardstick_is_a_plausible_rate_of_matrix_products():
    assert 1.0 < yardstick() < 1e5  # 2 GFLOP each


def test_the_baseline_is_the_committed_speeds(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_gate, "BASELINE", tmp_path / "benchmark.json")
    with pytest.raises(UserError, match="--gate"):
        read_baseline(2)
    (tmp_path / "benchmark.json").write_text(json.dumps({"devices": 2, "figures": [], "relative_speeds": {"a": 2.0}}))
    assert read_baseline(2) == {"a": 2.0}
    with pytest.raises(UserError, match="2 devices, here are 4"):
        read_baseline(4)


def test_best_times_exclude_compilation():
    compiled = []

    def work():
        time.sleep(0.001 if compiled else 0.2)
        compiled.append(True)

    slow, fast = best_times(lambda: time.sleep(0.02), work)
    assert 0.02 <= slow < 0.1
    assert 0.001 <= fast < 0.1
