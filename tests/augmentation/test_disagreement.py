"""The filter keeps exactly the trajectories that the members of a one-step model disagree with least."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.augmentation.base import Augmentation, sample_in_chunks
from coda_jax.augmentation.disagreement import disagreement, keep_agreed, least_disagreed
from coda_jax.augmentation.model_based import PriorWithDynamics
from coda_jax.dynamics.ensemble import DynamicsModel
from coda_jax.types import Trajectory
from tests.linear import DATASET, DYNAMICS, MODEL, H

UNITS = dataclasses.replace(DYNAMICS, input_std=jnp.array([2.0, 1.0]), target_std=jnp.array([1.0, 0.5]))
"""States have a standard deviation of 2, rewards of 0.5."""


def followed(key, num, error=0.0) -> Trajectory:
    """Trajectories of the linear world, whose next states miss by `error` [num], up and down in turn."""
    action = jax.random.uniform(key, (num, H, 1, 1), minval=-1.0)
    states = [jnp.zeros((num, 1))]
    for t in range(H - 1):
        states.append(0.9 * states[-1] + 0.8 * action[:, t, 0] + (-1) ** t * jnp.reshape(error, (-1, 1)))
    state = jnp.stack(states, axis=1)
    reward = state[..., 0] + action[..., 0, 0]
    return Trajectory(state=state, obs=state[:, :, None], action=action, reward=reward, terminal=jnp.zeros((num, H)))


def apart(distance):
    """The right one-step model, its members `distance(state)` apart in the next state."""

    def predict(dynamics, state, action):
        right = MODEL.predict(dynamics, state, action)
        return right._replace(disagreement=right.disagreement.at[..., 0].set(distance(state[..., 0])))

    return DynamicsModel(MODEL.fit, predict)


def test_it_is_the_distance_from_the_members_predictions():
    """Three members whose next states and rewards are known: the mean over them, steps and features, by hand."""
    offsets = np.array([[-0.3, 0.1], [0.5, 0.0], [-0.2, -0.1]])

    def predict(dynamics, state, action):
        right = MODEL.predict(dynamics, state, action)
        spread = jnp.broadcast_to(jnp.asarray(offsets.std(axis=0), jnp.float32), right.disagreement.shape)
        return right._replace(disagreement=spread)  # the offsets add up to zero

    error = np.array([0.0, 0.4, -1.0])
    trajectory = followed(jax.random.key(0), 3, jnp.asarray(error, jnp.float32))
    signs = (-1.0) ** np.arange(H - 1)
    of_state = (error[:, None, None] * signs[None, :, None] - offsets[None, None, :, 0]) / 2.0
    of_reward = np.broadcast_to(-offsets[None, None, :, 1] / 0.5, of_state.shape)
    expected = np.sqrt(np.mean((of_state**2 + of_reward**2) / 2, axis=(1, 2)))
    np.testing.assert_allclose(disagreement(DynamicsModel(MODEL.fit, predict), UNITS, trajectory), expected, rtol=1e-5)


@pytest.mark.parametrize("by", ["error", "members"])
def test_exactly_the_least_are_kept_in_their_order(by):
    """By the error of the trajectory, or where it has none, by the members' disagreement far from the origin."""
    error = jax.random.uniform(jax.random.key(1), (20,)) if by == "error" else jnp.zeros(20)
    model = MODEL if by == "error" else apart(jnp.abs)
    trajectory = followed(jax.random.key(0), 20, error)
    wanted = error if by == "error" else jnp.mean(trajectory.state[:, :-1, 0] ** 2, axis=1)
    best = np.sort(np.argsort(np.asarray(wanted))[:5])
    np.testing.assert_array_equal(least_disagreed(model, UNITS, trajectory, 5), best)


def test_trajectories_that_are_no_numbers_go_first():
    trajectory = followed(jax.random.key(0), 4, jnp.array([jnp.nan, 0.3, 0.1, 0.2]))
    np.testing.assert_array_equal(least_disagreed(MODEL, UNITS, trajectory, 3), [1, 2, 3])


def test_enough_are_sampled_for_the_number_asked_for():
    asked = []

    def source(state, dataset, prior, guidance, key, num):
        asked.append((prior, num))
        return followed(key, num, jnp.arange(num) / 10)

    augmentation = Augmentation(source, is_renewed=False, guidance=0.3)
    filtered = keep_agreed(augmentation, MODEL, 0.3)
    assert not filtered.is_renewed and filtered.guidance == 0.3
    prior = PriorWithDynamics(prior="the source's own", dynamics=UNITS)
    kept = filtered.sample((), DATASET, prior, jnp.zeros(()), jax.random.key(2), 7)
    assert asked == [("the source's own", 24)] and kept.reward.shape == (7, H)
    whole = source((), DATASET, (), jnp.zeros(()), jax.random.clone(jax.random.key(2)), 24)
    jax.tree.map(lambda k, w: np.testing.assert_array_equal(k, w[:7]), kept, whole)


def test_a_fraction_of_one_keeps_all_and_chunks_keep_their_number():
    source = Augmentation(lambda state, dataset, prior, guidance, key, num: followed(key, num))
    prior = PriorWithDynamics(prior=(), dynamics=UNITS)

    def draw(fraction, num):
        filtered = keep_agreed(source, MODEL, fraction)
        return filtered.sample((), DATASET, prior, jnp.zeros(()), jax.random.key(3), num)

    jax.tree.map(np.testing.assert_array_equal, draw(1.0, 9), followed(jax.random.key(3), 9))
    filtered = keep_agreed(source, MODEL, 0.5)
    chunks = sample_in_chunks(
        lambda key, num: filtered.sample((), DATASET, prior, jnp.zeros(()), key, num), jax.random.key(4), 10, 4
    )
    assert chunks.reward.shape == (10, H)
