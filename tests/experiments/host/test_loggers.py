"""Loggers get the rows of metrics.csv; each is tested where its package is installed."""

import sys

import numpy as np
import pytest

from experiments.host.errors import UserError
from experiments.host.loggers import logger
from experiments.host.run_folder import Metrics

SEEDS = np.array([3, 4])


def log(kind, folder, rounds):
    metrics = Metrics(folder / "metrics.csv")
    with logger(kind, folder, {"guidance": 0.6}) as rows:
        metrics.listeners.append(rows)
        for round_ in rounds:
            metrics.append(round_, SEEDS, {"return": np.array([1.0, 2.0]) * round_, "updates": 10 * round_})


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    for kind, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"--log needs {package}; install the extra"), logger(kind, tmp_path, {}):
            pass
    assert not list(tmp_path.iterdir())


def test_tensorboard_has_the_rows(tmp_path):
    """The records of the event files, read by their format: length (8 bytes), checksum (4), content, checksum (4)."""
    parse = pytest.importorskip("tensorboardX.proto.event_pb2").Event.FromString
    log("tensorboard", tmp_path, [0, 1])
    log("tensorboard", tmp_path, [2])
    found = {}
    for path in (tmp_path / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event, data = parse(data[12 : 12 + length]), data[16 + length :]
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    assert found == {
        (f"{name}/seed_{seed}", round_): value
        for round_ in range(3)
        for index, seed in enumerate(SEEDS)
        for name, value in (("return", (index + 1.0) * round_), ("updates", 10.0 * round_))
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log("wandb", tmp_path, [0, 1])
    (records,) = tmp_path.rglob("*.wandb")
    content = records.read_bytes()
    assert b"return" in content and b"seed_4" in content
