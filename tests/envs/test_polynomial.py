import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coda_jax.envs.polynomial import (
    MULTIPLICATION,
    DatasetConfig,
    PolynomialGame,
    as_trajectory,
    cell_masses,
    optima,
    reward,
    sample_actions,
    twin_peaks,
)

actions = st.floats(-1.0, 1.0, width=32)


def joint(x, y):
    return jnp.asarray([[x], [y]], jnp.float32)


@settings(max_examples=20)
@given(x=actions, y=actions)
def test_rewards_equal_the_formulas_of_the_paper(x, y):
    np.testing.assert_allclose(reward(MULTIPLICATION, joint(x, y)), x * y, atol=1e-6)
    peaks = -2.0 * (x**2 + y**2) - 3.0 * (x * y) ** 2 + 7.0 * x * y
    np.testing.assert_allclose(reward(twin_peaks(2.0, 3.0, 7.0), joint(x, y)), peaks, atol=1e-5)


def test_each_coefficient_multiplies_its_monomial():
    for j in range(3):
        for k in range(4):
            coefficients = np.zeros((3, 4))
            coefficients[j, k] = 2.0
            game = PolynomialGame("monomial", tuple(map(tuple, coefficients.tolist())))
            np.testing.assert_allclose(reward(game, joint(0.5, -0.75)), 2.0 * 0.5**j * (-0.75) ** k, rtol=1e-6)


def test_the_optima_of_the_papers_games():
    points, best = optima(MULTIPLICATION)
    np.testing.assert_allclose(points, [[-1, -1], [1, 1]], atol=1e-8)
    assert best == 1.0
    # On the diagonal R = (C - 2A) t^2 - B t^4, so t^2 = (C - 2A) / 2B and R = (C - 2A)^2 / 4B.
    points, best = optima(twin_peaks())
    np.testing.assert_allclose(points, np.sqrt(3 / 8) * np.array([[-1, -1], [1, 1]]), atol=1e-7)
    np.testing.assert_allclose(best, 0.5625, rtol=1e-12)


def test_optima_on_an_edge_and_inside_exclude_lower_maxima():
    # x - (y - 0.3)^2: the best x is at the edge, the best y inside.
    points, best = optima(PolynomialGame("edge", ((-0.09, 0.6, -1.0), (1.0, 0.0, 0.0))))
    np.testing.assert_allclose(points, [[1.0, 0.3]], atol=1e-7)
    np.testing.assert_allclose(best, 1.0, rtol=1e-12)
    # Twin Peaks with a slope along x: only one of the two local maxima is the best.
    points, _ = optima(PolynomialGame("tilted", ((0.0, 0.0, -1.0), (0.05, 5.0, 0.0), (-1.0, 0.0, -4.0))))
    assert len(points) == 1 and (points > 0.6).all()


def test_trajectories_of_a_game_are_one_terminal_step():
    trajectory = as_trajectory(MULTIPLICATION, jnp.stack([joint(0.5, 0.5), joint(-1.0, 0.25)]))
    assert trajectory.action.shape == (2, 1, 2, 1) and trajectory.obs.shape == (2, 1, 2, 0)
    np.testing.assert_allclose(trajectory.reward, [[0.25], [-0.25]])
    np.testing.assert_array_equal(trajectory.terminal, 1.0)


@pytest.mark.parametrize(
    ("name", "mean", "variance"),
    [
        ("uniform", (0.0, 0.0), (1 / 3, 1 / 3)),
        # Second moments by squares: probabilities 11/15, 3/15, 1/15 of 1/3, 1/3, (1 - 1/8) / 3 / (1/2) = 7/12.
        ("skewed", (0.15, -0.05), (0.35 - 0.15**2, 0.35 - 0.05**2)),
        ("gaussian", (0.1, -0.2), (0.04, 0.04)),
        ("point", (0.1, -0.2), (0.0, 0.0)),
    ],
)
def test_datasets_have_the_moments_of_their_distribution(name, mean, variance):
    config = DatasetConfig(name, centre=(0.1, -0.2), num_transitions=40_000)
    sample = np.asarray(sample_actions(config, jax.random.key(0)))[..., 0].astype(float)
    assert np.abs(sample).max() <= 1.0
    np.testing.assert_allclose(sample.mean(axis=0), mean, atol=4 * np.sqrt(max(variance) / 40_000) + 1e-7)
    np.testing.assert_allclose(sample.var(axis=0), variance, atol=4 * np.sqrt(2 / 40_000) * max(variance) + 1e-7)


@pytest.mark.parametrize("game", [MULTIPLICATION, twin_peaks()], ids=lambda game: game.name)
def test_skewed_data_cover_the_square_with_positive_high_return_actions(game):
    sample = sample_actions(DatasetConfig("skewed"), jax.random.key(1))
    counts, _, _ = np.histogram2d(*np.asarray(sample)[..., 0].T, bins=10, range=[[-1, 1], [-1, 1]])
    assert counts.min() > 0
    value = reward(game, sample)
    high = np.asarray(sample)[np.asarray(value >= jnp.quantile(value, 0.98)), :, 0]
    assert (high.mean(axis=0) > 0.1).all()


@pytest.mark.parametrize("name", ["uniform", "skewed", "gaussian", "point"])
def test_cell_masses_equal_sample_frequencies(name):
    config = DatasetConfig(name, centre=(0.7, -0.35), spread=0.4, num_transitions=100_000)
    edges = np.linspace(-1.0, 1.0, 11)
    sample = np.asarray(sample_actions(config, jax.random.key(2)))[..., 0]
    counts, _, _ = np.histogram2d(*sample.T, bins=[edges, edges])
    masses = cell_masses(config, edges)
    np.testing.assert_allclose(masses.sum(), 1.0, rtol=1e-12)
    expected = masses * 100_000
    np.testing.assert_array_less(np.abs(counts - expected), 5 * np.sqrt(expected) + 1e-6)


@pytest.mark.parametrize(
    "wrong", [{"name": "round"}, {"centre": (0.0, 1.5)}, {"spread": 0.0}, {"num_transitions": 0}], ids=str
)
def test_invalid_datasets_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("name", "dataset")):
        DatasetConfig(**wrong)
