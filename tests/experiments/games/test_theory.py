import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, twin_peaks
from coda_jax.marl.stateless_maddpg import StatelessMaddpgConfig
from experiments.games.theory import (
    expected_gradient,
    marginal_rewards,
    mean_and_spread,
    predicted_path,
    tilted_masses,
    true_gradient,
    twin_peaks_fixed_point,
)

actions = st.floats(-1.0, 1.0)
DATA = np.random.default_rng(0).uniform((-0.3, -1.0), (1.0, 0.8), (200, 2))
MEAN, SQUARE = DATA.mean(axis=0)[::-1], (DATA**2).mean(axis=0)[::-1]
EDGES = np.linspace(-1.0, 1.0, 201)


@settings(max_examples=20)
@given(x=actions, y=actions)
def test_expected_gradients_are_eq_20_and_eq_22(x, y):
    theta = np.array([x, y])
    np.testing.assert_allclose(expected_gradient(marginal_rewards(MULTIPLICATION, DATA), theta), MEAN, rtol=1e-12)
    peaks = expected_gradient(marginal_rewards(twin_peaks(), DATA), theta)
    np.testing.assert_allclose(peaks, -2 * theta - 8 * theta * SQUARE + 5 * MEAN, atol=1e-12)


@settings(max_examples=20)
@given(x=actions, y=actions)
def test_the_true_gradient_is_the_expected_one_on_the_policys_own_actions(x, y):
    theta = np.array([x, y])
    own = expected_gradient(marginal_rewards(twin_peaks(), theta[None]), theta)
    np.testing.assert_allclose(true_gradient(twin_peaks(), theta), own, atol=1e-12)


def test_the_path_of_multiplication_is_a_straight_line_that_stops_at_the_border():
    config = StatelessMaddpgConfig(learning_rate=0.5)
    path = predicted_path([marginal_rewards(MULTIPLICATION, DATA)] * 40, np.zeros(2), config)
    expected = np.clip(0.5 * np.arange(41)[:, None] * MEAN, -1.0, 1.0)
    np.testing.assert_allclose(path, expected, atol=1e-12)
    assert (np.abs(path[-1]) == 1.0).any()


def test_the_path_of_twin_peaks_ends_at_eq_24():
    path = predicted_path(
        [marginal_rewards(twin_peaks(), DATA)] * 200, np.array([-0.64, 0.65]), StatelessMaddpgConfig()
    )
    np.testing.assert_allclose(path[-1], twin_peaks_fixed_point(DATA), atol=1e-9)
    np.testing.assert_allclose(path[-1], 5 * MEAN / (2 + 8 * SQUARE), atol=1e-9)


def test_steps_are_no_longer_than_the_largest_norm_allows():
    path = predicted_path([marginal_rewards(twin_peaks(), DATA)] * 3, np.array([-0.64, 0.65]), StatelessMaddpgConfig())
    gradient = expected_gradient(marginal_rewards(twin_peaks(), DATA), path[0])
    np.testing.assert_allclose(path[1] - path[0], 0.1 * gradient / np.linalg.norm(gradient), rtol=1e-9)


def test_eq_15_without_guidance_is_the_data_and_sharpens_around_the_policy():
    uniform = DatasetConfig("uniform")
    policy = np.array([0.2, -0.3])
    np.testing.assert_allclose(tilted_masses(uniform, EDGES, policy, 0.0), 1 / 200**2, rtol=1e-9)
    # A uniform prior leaves the policy's own Gaussian, of variance 1 / lambda, where the border is far away.
    mean, spread = mean_and_spread(tilted_masses(uniform, EDGES, policy, 100.0), EDGES)
    np.testing.assert_allclose(mean, policy, atol=1e-4)
    np.testing.assert_allclose(spread, 0.1, rtol=1e-3)


def test_eq_15_of_gaussian_data_is_the_product_of_two_gaussians():
    data = DatasetConfig("gaussian", centre=(0.1, -0.1), spread=0.2)
    mean, spread = mean_and_spread(tilted_masses(data, EDGES, np.array([0.5, -0.5]), 25.0), EDGES)
    np.testing.assert_allclose(mean, [0.3, -0.3], atol=1e-3)  # equal precisions: half-way
    np.testing.assert_allclose(spread, 0.2 / np.sqrt(2), rtol=1e-2)


@pytest.mark.parametrize("centre", [(0.0, 0.0), (0.4, 0.6)])
def test_the_fixed_point_shrinks_as_the_data_spread(centre):
    offset = np.array([[1.0, -1.0], [-1.0, 1.0]])
    ends = [twin_peaks_fixed_point(np.array(centre) + spread * offset) for spread in (0.1, 0.3, 0.5)]
    sizes = np.linalg.norm(ends, axis=-1)
    assert (sizes == 0.0).all() if centre == (0.0, 0.0) else (np.diff(sizes) < 0).all()
