import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, as_trajectory, reward, sample_actions, twin_peaks
from coda_jax.marl.learner import RowWeights, uniform_weights, unroll
from coda_jax.marl.stateless_maddpg import (
    CriticConfig,
    StatelessMaddpgConfig,
    brud_gradient,
    critic_value,
    fit_critic,
    stateless_maddpg,
)

actions = st.floats(-1.0, 1.0, width=32)
PEAKS = twin_peaks()
A, B, C = 1.0, 4.0, 5.0


def critic_of(game):
    return functools.partial(reward, game)


def data(name="uniform", **settings):
    return sample_actions(DatasetConfig(name, num_transitions=500, **settings), jax.random.key(0))


def theta_of(x, y):
    return jnp.asarray([[x], [y]], jnp.float32)


def equal_weights(batch):
    return jnp.ones(batch.shape[:-2])


def train(game, batch, num_updates, **settings):
    learner = stateless_maddpg(game.spec, critic_of(game), StatelessMaddpgConfig(**settings))
    trajectory = as_trajectory(game, batch)

    def body(state, _):
        state, _ = learner.update(state, trajectory, uniform_weights(batch.shape[0]), jax.random.key(1))
        return state, state.theta[:, 0]

    _, path = jax.jit(lambda state: jax.lax.scan(body, state, None, num_updates))(learner.init(jax.random.key(0)))
    return np.asarray(path)


@settings(max_examples=20)
@given(x=actions, y=actions)
def test_eq_20_the_gradient_of_multiplication_is_the_other_agents_mean_everywhere(x, y):
    batch = data("skewed")
    mean = np.mean(batch, axis=0)[:, 0]
    np.testing.assert_allclose(
        brud_gradient(critic_of(MULTIPLICATION), theta_of(x, y), batch, equal_weights(batch))[:, 0],
        mean[::-1],
        atol=1e-6,
    )


@settings(max_examples=20)
@given(x=actions, y=actions)
def test_eq_22_23_the_gradient_of_twin_peaks_depends_on_two_moments(x, y):
    batch = data("skewed")
    mean, square = (np.mean(np.asarray(batch, float) ** k, axis=0)[::-1, 0] for k in (1, 2))
    theta = np.array([x, y])
    expected = -2 * A * theta - 2 * B * theta * square + C * mean
    gradient = brud_gradient(critic_of(PEAKS), theta_of(x, y), batch, equal_weights(batch))
    np.testing.assert_allclose(gradient[:, 0], expected, atol=1e-4)


@settings(max_examples=20)
@given(x=actions, y=actions)
def test_the_gradient_on_the_policys_actions_is_the_true_gradient(x, y):
    theta = theta_of(x, y)
    on_policy = jnp.broadcast_to(theta, (7, 2, 1))
    true = jax.grad(lambda theta: reward(PEAKS, theta))(theta)
    gradient = brud_gradient(critic_of(PEAKS), theta, on_policy, equal_weights(on_policy))
    np.testing.assert_allclose(gradient, true, atol=1e-4)


def test_the_gradient_is_that_of_the_rows_with_weight_in_their_proportion():
    batch, weight = data()[:4], jnp.asarray([0.0, 1.0, 3.0, 0.0])
    repeated = batch[jnp.asarray([1, 2, 2, 2])]
    learner = stateless_maddpg(PEAKS.spec, critic_of(PEAKS), StatelessMaddpgConfig())
    state = learner.init(jax.random.key(0))
    weights = RowWeights(critic=jnp.zeros(4), actor=10.0 * weight, cloning=jnp.zeros(4))
    _, metrics = learner.update(state, as_trajectory(PEAKS, batch), weights, jax.random.key(1))
    _, expected = learner.update(state, as_trajectory(PEAKS, repeated), uniform_weights(4), jax.random.key(1))
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5)


def test_clipping_keeps_the_gradients_direction_and_actions_are_projected():
    # All actions of the others at 0.6 and 0.8, scaled by ten: the gradient is (8, 6), scaled down to norm 1.
    game = MULTIPLICATION
    learner = stateless_maddpg(
        game.spec, lambda a: 10.0 * reward(game, a), StatelessMaddpgConfig(start=(0.0, 0.95), learning_rate=0.1)
    )
    batch = as_trajectory(game, jnp.broadcast_to(theta_of(0.6, 0.8), (4, 2, 1)))
    state, metrics = learner.update(learner.init(jax.random.key(0)), batch, uniform_weights(4), jax.random.key(1))
    np.testing.assert_allclose([metrics["gradient_0"], metrics["gradient_1"]], [8.0, 6.0], rtol=1e-6)
    np.testing.assert_allclose(state.theta[:, 0], [0.08, 1.0], rtol=1e-6)


def test_small_gradients_are_not_scaled():
    path = train(MULTIPLICATION, jnp.broadcast_to(theta_of(0.1, -0.2), (4, 2, 1)), 1)
    np.testing.assert_allclose(path[0], [-0.64 - 0.02, 0.65 + 0.01], rtol=1e-5)


def test_the_policy_acts_with_theta_for_all_batch_axes():
    learner = stateless_maddpg(PEAKS.spec, critic_of(PEAKS), StatelessMaddpgConfig(start=(0.25, -0.5)))
    state = learner.init(jax.random.key(0))
    action = unroll(learner, state, jnp.zeros((3, 1, 2, 0)))
    np.testing.assert_allclose(action[..., 0], np.broadcast_to([0.25, -0.5], (3, 1, 2)))


@pytest.mark.parametrize("start", [(-0.64, 0.65), (0.9, 0.9), (0.6, -0.2)])
def test_eq_24_twin_peaks_ends_at_the_fixed_point_of_the_data_from_any_start(start):
    batch = data("gaussian", centre=(0.3, 0.5), spread=0.3)
    other = np.asarray(batch, float)[:, ::-1, 0]
    fixed = C * other.mean(0) / (2 * A + 2 * B * (other.mean(0) ** 2 + other.var(0)))
    path = train(PEAKS, batch, 200, start=start)
    np.testing.assert_allclose(path[-1], fixed, atol=1e-5)


@pytest.mark.parametrize("spread", [0.05, 0.3, 0.6])
def test_centred_data_collapse_twin_peaks_to_the_origin_at_any_variance(spread):
    batch = data("gaussian", spread=spread)
    centred = jnp.concatenate([batch, -batch])
    np.testing.assert_allclose(train(PEAKS, centred, 200)[-1], 0.0, atol=1e-5)


def test_growing_spread_pulls_the_fixed_point_from_the_optimum_to_the_origin():
    optimum = np.sqrt(3 / 8)
    ends = []
    for spread in (0.01, 0.1, 0.2, 0.3):
        offset = spread * jnp.asarray([1.0, -1.0, 1.0, -1.0])[:, None, None]
        batch = offset + jnp.full((1, 2, 1), optimum)  # mean at the optimum, variance spread^2
        ends.append(train(PEAKS, batch, 300)[-1])
    expected = [C * optimum / (2 * A + 2 * B * (optimum**2 + spread**2)) for spread in (0.01, 0.1, 0.2, 0.3)]
    np.testing.assert_allclose(ends, np.stack([expected, expected], -1), atol=1e-4)
    assert (np.diff(ends, axis=0) < 0).all()


def test_a_fitted_critic_replaces_the_reward():
    dataset = as_trajectory(PEAKS, data())
    config = CriticConfig(num_updates=1500)
    params, error = jax.jit(lambda key: fit_critic(config, dataset, key))(jax.random.key(3))
    assert error < 0.05 * jnp.std(dataset.reward)
    points = jax.random.uniform(jax.random.key(4), (64, 2, 1), minval=-0.8, maxval=0.8)
    fitted = critic_value(config, params, points)
    np.testing.assert_allclose(fitted, reward(PEAKS, points), atol=0.25)
    # A policy trained on the critic converges to the same point as on the reward.
    learner = stateless_maddpg(PEAKS.spec, functools.partial(critic_value, config, params), StatelessMaddpgConfig())
    state = learner.init(jax.random.key(0))
    batch = as_trajectory(PEAKS, data("gaussian", centre=(0.3, 0.5), spread=0.3))
    update = jax.jit(learner.update)
    for _ in range(60):
        state, _ = update(state, batch, uniform_weights(500), jax.random.key(1))
    known = train(PEAKS, batch.action[:, 0], 60)[-1]
    np.testing.assert_allclose(state.theta[:, 0], known, atol=0.1)


@pytest.mark.parametrize("start", [(0.0,), (0.0, 1.5)])
def test_invalid_starts_are_refused(start):
    with pytest.raises(ValueError, match="start"):
        stateless_maddpg(PEAKS.spec, critic_of(PEAKS), StatelessMaddpgConfig(start=start))
