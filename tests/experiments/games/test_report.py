"""The numbers behind the tables and claims, on paths made by hand."""

import numpy as np
import pytest

from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, twin_peaks
from experiments.games.methods import CODA_METHODS, STATIC_METHODS, TRUE_GRADIENT
from experiments.games.report import alignment, basin_of, claims_table, grid_agreement, reward
from experiments.games.theory import true_gradient
from experiments.games.training import HostPath, Results

RNG = np.random.default_rng(0)


def results(paths=None, grid=None) -> Results:
    nothing = np.zeros((0, 2))
    return Results(paths=paths or {}, grid=grid or {}, data={}, policies=nothing, samples={}, clouds={})


def test_rewards_are_those_of_the_games():
    theta = RNG.uniform(-1, 1, (5, 7, 2))
    np.testing.assert_allclose(reward(MULTIPLICATION, theta), theta.prod(axis=-1), atol=1e-12)


@pytest.mark.parametrize(("angle", "factor"), [(0.0, 1.0), (0.3, 0.5), (np.pi / 2, 2.0), (np.pi, 1.0)])
def test_alignment_is_the_cosine_and_the_ratio_of_norms_after_burn_in(angle, factor):
    theta = RNG.uniform(-0.9, 0.9, (2, 3, 8, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    gradient = factor * true_gradient(twin_peaks(), theta[:, :, :-1]) @ turn.T
    gradient[:, :, :2] = RNG.normal(size=(2, 3, 2, 2))  # burn-in is on other data
    found = alignment(twin_peaks(), results({"coda": HostPath(theta, gradient)}), "coda", burn_in=2)
    assert found["cosine"].shape == (2, 3, 5)
    np.testing.assert_allclose(found["cosine"], np.cos(angle), atol=1e-9)
    np.testing.assert_allclose(found["size"], factor, rtol=1e-9)


def test_a_policy_belongs_to_the_optimum_it_reaches_and_to_none_far_from_it():
    optimum = np.sqrt(3 / 8)
    ends = np.array([[-optimum, -optimum], [optimum + 0.05, optimum], [0.0, 0.0], [optimum, -optimum]])
    np.testing.assert_array_equal(basin_of(twin_peaks(), ends), [0, 1, -1, -1])


def test_grid_agreement_leaves_out_the_starts_between_the_basins():
    starts = np.array([[0.5, 0.5], [-0.5, -0.5], [0.5, -0.45], [0.9, 0.1]])
    paths = HostPath(starts[None, :, None], np.zeros((1, 4, 0, 2)))
    basin = {TRUE_GRADIENT: np.array([[1, 0, 1, 1]]), "coda": np.array([[1, 0, 0, -1]])}
    assert grid_agreement(results(grid={"coda": paths}), basin, "coda") == pytest.approx(2 / 3)


def test_claims_fail_where_the_numbers_do():
    good = {method: np.full((4, 4, 3), 1.0) for method in CODA_METHODS}
    bad = {method: np.full((4, 4, 3), 0.2) for method in STATIC_METHODS}
    aligned = {method: {"norm": np.array([1.0, 0.01]), "cosine": np.array([0.99, 0.0])} for method in CODA_METHODS}
    agreement = dict.fromkeys(CODA_METHODS, 0.96)
    deviations = {method: np.array([0.5, 2.9]) for method in STATIC_METHODS}
    everything = (DatasetConfig("uniform"), good | bad, 1.0, aligned, agreement, deviations)
    assert {row["holds"] for row in claims_table(*everything)} == {"yes"}

    short = np.full((4, 4, 3), 1.0)
    short[0, :2, -1] = 0.985  # 14 of 16 seeds reach it
    spoilt = (
        DatasetConfig("uniform"),
        good | bad | {"coda": short, "q-conditioned": good["coda"]},
        1.0,
        aligned | {"coda": {"norm": np.array([0.2]), "cosine": np.array([0.9])}},
        agreement | {"coda": 0.9},
        deviations | {"none": np.array([3.1, 0.0])},
    )
    failed = [row["claim"] for row in claims_table(*spoilt) if row["holds"] == "NO"]
    assert len(failed) == 5
    assert sum("coda " in claim or "coda:" in claim for claim in failed) == 3
    assert sum("q-conditioned" in claim for claim in failed) == sum("none" in claim for claim in failed) == 1
