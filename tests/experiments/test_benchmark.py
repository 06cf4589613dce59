import json
import time

import pytest

from experiments import benchmark
from experiments.benchmark import Figure, check_gate, race, read_baseline
from experiments.errors import UserError


def test_the_gate_closes_on_a_fallen_ratio_alone():
    baseline = {"learner updates, 4 seeds": 2.0, "guided trajectories": 1.0}
    fast = [Figure("learner updates, 4 seeds", 5.0, 1.5, "1 seed"), Figure("guided trajectories", 1.0, 3.0, "x")]
    check_gate(fast, baseline, tolerance=0.3)
    slow = [*fast, Figure("learner updates, 4 seeds", 500.0, 1.3, "1 seed"), Figure("new", 1.0, 0.1, "x")]
    with pytest.raises(SystemExit) as exit_:
        check_gate(slow, baseline, tolerance=0.3)
    assert exit_.value.code == "slower than committed: learner updates, 4 seeds / 1 seed: 1.30, committed 2.00"
    with pytest.raises(SystemExit, match="guided trajectories: not measured"):
        check_gate(fast[:1], baseline, tolerance=0.3)


def test_the_baseline_is_the_committed_ratios(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "BASELINE", tmp_path / "benchmark.json")
    with pytest.raises(UserError, match="--gate"):
        read_baseline(2)
    rows = [{"what": "a", "value": 1.0, "ratio": 2.0, "against": "b"}, {"what": "b", "value": 1.0, "ratio": None}]
    (tmp_path / "benchmark.json").write_text(json.dumps({"devices": 2, "figures": rows}))
    assert read_baseline(2) == {"a": 2.0}
    with pytest.raises(UserError, match="2 devices, here are 4"):
        read_baseline(4)


def test_a_race_does_not_time_the_first_run():
    compiled = []

    def work():
        time.sleep(0.001 if compiled else 0.2)
        compiled.append(True)

    slow, fast = race(lambda: time.sleep(0.02), work)
    assert 0.02 <= slow < 0.1
    assert 0.001 <= fast < 0.1
