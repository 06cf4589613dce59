import csv
import json

import numpy as np
import pytest
import yaml

from experiments import report


def keep_run(path, augmentation: str, offset: float, seeds: int = 3, dataset_mean: float = 100.0):
    """What is kept of a finished run of two rounds; seed s returns offset + 100 round + s."""
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump({"training": {"mix_ratio": 0.5}}))
    guided = {"dynamics_error": 0.4} if augmentation == "coda" else None
    kinds = {"guided": guided, "unguided": {"dynamics_error": 0.3}, "real, actions shuffled": {"dynamics_error": 0.9}}
    final = offset + 200.0 + np.arange(seeds)
    summary = {
        "task": "drift",
        "dataset": "replay",
        "augmentation": augmentation,
        "guidance": 0.6,
        "updates": 20,
        "num_seeds": seeds,
        "returns_per_seed": final.tolist(),
        "mean": final.mean(),
        "standard_error": final.std(ddof=1) / np.sqrt(seeds) if seeds > 1 else None,
        "dataset_mean_return": dataset_mean,
        "dataset_best_return": 500.0,
        "sample_quality": None if augmentation == "none" else {k: v for k, v in kinds.items() if v},
    }
    (path / "summary.json").write_text(json.dumps(summary))
    likelihood = 0.0 if augmentation == "none" else -110.0
    with (path / "metrics.csv").open("w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["round", "seed", "updates", "return", "synthetic_log_likelihood", "unguided_log_likelihood"])
        for round_ in range(3):
            for seed in range(seeds):
                value = offset + 100 * round_ + seed
                now = (likelihood, likelihood - 5) if round_ else (0.0, 0.0)
                writer.writerow([round_, seed, 10 * round_, value, *now])
    return path


def test_runs_are_compared_and_again_with_the_same_bytes(tmp_path, capsys):
    runs = [keep_run(tmp_path / name, name, offset) for name, offset in (("coda", 50.0), ("none", 0.0))]
    outputs = [tmp_path / "a", tmp_path / "b"]
    for output in outputs:
        report.main([*map(str, runs), "--output", str(output)])
    table = (outputs[0] / "comparison.md").read_text()
    assert (
        "| CODA, mix 0.5, guidance 0.6 | 20 | 3 | 251 +- 1 | 250, 251, 252 | -110.0 | -115.0 | 0.40 | 0.30 | 0.90 |"
        in table
    )
    assert "| no augmentation | 20 | 3 | 201 +- 1 | 200, 201, 202 |  |" in table
    for name in ("comparison.md", "returns.png", "likelihood.png"):
        assert (outputs[0] / name).read_bytes() == (outputs[1] / name).read_bytes()


def test_a_single_seed_has_no_spread(tmp_path):
    run = keep_run(tmp_path / "one", "coda", 0.0, seeds=1)
    report.main([str(run), "--output", str(tmp_path / "out")])
    assert "| 200 |" in (tmp_path / "out" / "comparison.md").read_text()


def refusal(capsys, *args) -> str:
    with pytest.raises(SystemExit) as exit_:
        report.main([*map(str, args)])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    one = keep_run(tmp_path / "one", "coda", 0.0)
    other = keep_run(tmp_path / "other", "coda", 0.0, dataset_mean=90.0)
    assert str(other) in refusal(capsys, one, other, "--output", tmp_path / "out")
    assert "nowhere" in refusal(capsys, tmp_path / "nowhere", "--output", tmp_path / "out")
    assert "no runs" in refusal(capsys, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
