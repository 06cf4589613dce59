"""The least share of on-policy data: closed forms, and the learner itself on both sides of it."""

import functools

import jax
import numpy as np
import pytest

from coda_jax.augmentation.oracle import oracle
from coda_jax.coda import make_trainer
from coda_jax.data.dataset import one_step_dataset
from coda_jax.envs.polynomial import (
    MULTIPLICATION,
    DatasetConfig,
    PolynomialGame,
    environment,
    reward,
    sample_dataset,
    twin_peaks,
)
from coda_jax.marl.stateless_maddpg import StatelessMaddpgConfig, stateless_maddpg
from coda_jax.schedule import CodaConfig
from experiments import polynomial, share
from experiments.games.share import Field, is_stable, least_share, stable_points, stationary_points
from experiments.games.theory import marginal_rewards

A, B, C = 1.0, 4.0, 5.0
UNIFORM = np.stack(np.meshgrid(*[np.polynomial.legendre.leggauss(8)[0]] * 2), -1).reshape(-1, 2)


def uniform_marginals(game):
    """Exact: E[a] = 0 and E[a^2] = 1/3 of the uniform distribution."""
    c = np.asarray(game.coefficients)
    moments = np.array([0.0 if k % 2 else 1 / (k + 1) for k in range(c.shape[0])])
    return c @ moments, moments @ c


def test_twin_peaks_frees_its_agents_above_the_share_derived_by_hand():
    """At the origin the Jacobian is -(2A + 2B/3 (1 - alpha)) on the diagonal and alpha C beside it."""
    game = twin_peaks(A, B, C)
    by_hand = (2 * A + 2 * B / 3) / (C + 2 * B / 3)
    found = least_share(game, uniform_marginals(game), np.array([-0.64, 0.65]))
    assert found == pytest.approx(by_hand, abs=1e-6)
    assert by_hand == pytest.approx(0.609, abs=5e-4)
    for alpha, expected in ((by_hand - 1e-3, True), (by_hand + 1e-3, False)):
        field = Field(game, uniform_marginals(game), alpha)
        assert is_stable(field, np.zeros(2)) is expected
        assert len(stable_points(field)) == (1 if expected else 2)


def test_on_policy_data_alone_leave_the_optima_of_the_game():
    game = twin_peaks(A, B, C)
    peak = np.sqrt((C - 2 * A) / (2 * B))  # on the diagonal R = -2A t^2 - B t^4 + C t^2
    points = stable_points(Field(game, uniform_marginals(game), 1.0))
    np.testing.assert_allclose(np.sort(points[:, 0]), [-peak, peak], atol=1e-6)
    np.testing.assert_allclose(points[:, 0], points[:, 1], atol=1e-6)
    assert least_share(game, uniform_marginals(game), np.array([0.6, 0.6])) is not None


@pytest.mark.parametrize(("means", "expected"), [((0.15, -0.05), 0.05 / 1.05), ((0.02, -0.3), 0.02 / 1.02)])
def test_multiplication_leaves_the_wrong_corner_above_the_smaller_mean(means, expected):
    """R = xy: x follows (1 - alpha) E[y] + alpha y. At (-1, 1) the weaker pull is overcome at m / (1 + m)."""
    marginals = marginal_rewards(MULTIPLICATION, np.array([means]))
    assert least_share(MULTIPLICATION, marginals, np.array([0.0, 0.0])) == pytest.approx(expected, abs=1e-6)
    corners = stationary_points(Field(MULTIPLICATION, marginals, expected - 1e-3))
    assert any(np.allclose(corner, (-1, 1)) for corner in corners)


def test_a_game_whose_optimum_the_data_find_needs_no_share():
    """R = -x^2 - y^2 has no coordination."""
    game = PolynomialGame("bowl", ((0.0, 0.0, -1.0), (0.0, 0.0, 0.0), (-1.0, 0.0, 0.0)))
    assert least_share(game, uniform_marginals(game), np.array([0.5, -0.3])) is None


@pytest.mark.parametrize(("alpha", "is_free"), [(0.55, False), (0.67, True)])
def test_the_learner_stays_below_the_least_share_and_leaves_above(alpha, is_free):
    """Algorithm 2 with roll-outs of the current policy, renewed before every update, on uniform data."""
    game, env = twin_peaks(A, B, C), environment(twin_peaks(A, B, C))
    settings = StatelessMaddpgConfig(start=(0.06, 0.05), learning_rate=0.1)
    learner = stateless_maddpg(game.spec, functools.partial(reward, game), settings)
    config = CodaConfig(
        horizon=1,
        batch_size=1000,
        mix_ratio=alpha,
        epochs_per_round=1,
        updates_per_epoch=1,
        num_rounds=300,
        num_trajectories=8,
        reference_trajectories=0,
        evaluation_episodes=1,
    )
    dataset = one_step_dataset(
        sample_dataset(game, DatasetConfig("uniform", num_transitions=50_000), jax.random.key(0))
    )
    trainer = make_trainer(env, learner, oracle(env, learner, 1), config)
    state, _ = jax.jit(trainer.run)(jax.jit(trainer.init)(jax.random.key(1)), dataset, ())
    size = float(np.linalg.norm(state.learner.theta))
    assert (size > 0.25) is is_free
    assert is_free or size < 0.05

    marginals = uniform_marginals(game)
    end = stable_points(Field(game, marginals, alpha))
    nearest = np.min(np.linalg.norm(end - np.asarray(state.learner.theta)[:, 0], axis=1))
    assert nearest < 0.05


def test_the_command_takes_a_game_by_its_coefficients(tmp_path, capsys):
    picture = tmp_path / "share.png"
    share.main(["--coefficients", "0 0 -1; 0 5 0; -1 0 -4", "--output", str(picture)])
    assert "0.6087" in capsys.readouterr().out
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("wrong", ["0 1; 2", "", "0 a; 1 1", "0 inf; 0 0"])
@pytest.mark.parametrize("command", [share, polynomial])
def test_wrong_coefficients_are_one_clear_line(command, wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--coefficients", wrong])
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: --coefficients is ") and "\n" not in error
