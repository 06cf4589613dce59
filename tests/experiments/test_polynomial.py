"""The command of the polynomial games: bad input, what a run folder holds, and a finished run; tiny, to be quick."""

import csv
import gzip
import json
import shlex

import jax
import numpy as np
import pytest

from experiments import polynomial
from experiments.games import training as polynomial_training
from tests.lowering import lower_for_accelerators, recorded_programs

TINY = shlex.split(
    "--num-draws 2 --num-seeds 4 --num-transitions 50 --num-updates 3 --grid-size 2 --grid-updates 3 "
    "--denoiser.num-updates 2 --denoiser.batch-size 8 --denoiser.unet.width 4 "
    "--denoiser.unet.embedding-dim 4 --denoiser.unet.channel-multipliers 1 "
    "--diffusion.num-steps 2 --guided-diffusion.num-steps 2 --coda.batch-size 4 --coda.num-static 16"
)


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polynomial, "enable_compilation_cache", lambda: None)
        patch.setattr(polynomial_training, "LATTICE_SIZE", 2)
        patch.setattr(polynomial_training, "NUM_SAMPLES", 8)
        patch.setenv("CODA_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def command(*flags: str) -> None:
    # A process of its own would start with fresh keys; in this one, the checks of key reuse remember.
    with jax.debug_key_reuse(False):
        polynomial.main([*TINY, *flags])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "peaks"
    command("--game", "twin-peaks", "--run-dir", str(path))
    return path


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_leaves_pictures_tables_and_raw_numbers(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["optimum"] == pytest.approx(0.5625) and summary["dataset"] == "uniform"
    assert {len(returns) for returns in summary["returns_per_seed"].values()} == {4}
    assert {path.name for path in (run_dir / "figures").iterdir()} == {
        "methods.png",
        "grid.png",
        "gradient.png",
        "routes.png",
    }
    methods = len(polynomial_training.METHODS)
    for name, rows in {"ends.csv": methods * 4, "grid.csv": methods * 4, "samples.csv": 2 * 2 * 7}.items():
        assert len(rows_of(run_dir / name)) == rows, name
    with gzip.open(run_dir / "paths.csv.gz", "rt") as file:
        paths = list(csv.DictReader(file))
    assert len(paths) == methods * 4 * (3 + 2 + 1)  # updates, burn-in, start
    assert (float(paths[0]["x"]), float(paths[0]["y"])) == (-0.64, 0.65)


@pytest.mark.slow
def test_draws_have_data_and_denoisers_of_their_own(run_dir):
    rows = [row for row in rows_of(run_dir / "samples.csv") if row["method"] == "coda"]
    by_draw = [[row["mean_x"] for row in rows if row["draw"] == draw] for draw in "01"]
    assert len(by_draw[0]) == len(by_draw[1]) and by_draw[0] != by_draw[1]


@pytest.mark.slow
def test_on_a_finished_run_the_command_prints_the_tables_again(run_dir, monkeypatch, capsys):
    def fail(*_):
        raise AssertionError("trains a finished run")

    monkeypatch.setattr(polynomial, "train_all", fail)
    command("--game", "twin-peaks", "--run-dir", str(run_dir))
    printed = capsys.readouterr().out
    assert "q-conditioned" in printed and "claims" in printed and "optimum 0.5625" in printed


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--game chess", "--game is 'chess'"),
        ("--dataset round", "--dataset is 'round'"),
        ("--critic wrong", "--critic is 'wrong'"),
        ("--num-seeds 5", "a multiple of --num-draws 2"),
        ("--coda.updates-per-renewal 2", "a multiple of --coda.updates-per-renewal 2"),
        ("--coda.top-returns 0", "--coda.top-returns"),
        ("--coda.burn-in -1", "--coda.burn-in"),
        ("--grid-size 3", "a multiple of --num-draws 2"),
        ("--num-updates 0", "--num-updates is 0"),
        ("--seed -1", "--seed is -1"),
        ("--dataset gaussian --spread 0", "spread"),
        ("--dataset point --centre 0 2", "centre"),
        ("--learner.start 0.5 2", "start"),
    ],
)
def test_bad_input_ends_with_one_line(flags, complaint, capsys, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        command(*shlex.split(flags), "--run-dir", str(tmp_path / "run"))
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and complaint in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_starts_of_the_grid_are_shared_out_whole():
    points = polynomial_training.lattice(4)
    shared = polynomial_training.shared_out(points, 4, seed=0)
    assert shared.shape == (4, 4, 2)
    np.testing.assert_array_equal(np.sort(shared.reshape(-1, 2), axis=0), np.sort(points, axis=0))
    np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=1e-12)
    assert np.abs(points).max() == 0.75


@pytest.mark.slow
def test_every_program_lowers_for_accelerators(tmp_path, monkeypatch):
    with recorded_programs(monkeypatch) as found:
        command("--game", "twin-peaks", "--run-dir", str(tmp_path / "run"))
    lower_for_accelerators(found)
