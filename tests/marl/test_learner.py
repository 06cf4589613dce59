import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coda_jax.marl.learner import Learner, uniform_weights, unroll, weighted_mean


@settings(max_examples=10)
@given(values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=6), scale=st.floats(0.125, 8, width=32))
def test_a_weighted_mean_is_the_mean_of_values_repeated_by_their_weights(values, scale):
    times = np.arange(len(values)) % 3
    times[0] = 1
    mean = weighted_mean(jnp.asarray(values), scale * jnp.asarray(times, jnp.float32))
    np.testing.assert_allclose(mean, np.mean(np.repeat(values, times)), rtol=1e-5, atol=1e-5)


def test_without_any_weight_a_mean_is_zero_and_so_is_its_gradient():
    mean, gradient = jax.value_and_grad(lambda x: weighted_mean(x**2, jnp.zeros(3)))(jnp.ones(3))
    assert mean == 0.0
    np.testing.assert_array_equal(gradient, np.zeros(3))


def test_uniform_weights_make_every_mean_the_plain_one():
    values = jax.random.normal(jax.random.key(0), (5,))
    for weights in uniform_weights(5).values():
        np.testing.assert_allclose(weighted_mean(values, weights), jnp.mean(values), rtol=1e-6)


def unused(*_):
    raise AssertionError("an unroll neither starts nor updates a learner")


def summing_learner() -> Learner:
    """Acts with its gain times the sum of all observations since its memory was empty."""

    def act(state, obs, carry):
        carry = carry + obs
        return state * carry, carry

    return Learner(init=unused, update=unused, act=act, initial_carry=lambda shape: jnp.zeros((*shape, 3, 2)))


@settings(max_examples=6)
@given(batch_shape=st.lists(st.integers(1, 2), max_size=2).map(tuple), horizon=st.integers(1, 4))
def test_unroll_acts_along_the_window_from_an_empty_memory(batch_shape, horizon):
    obs = jax.random.normal(jax.random.key(0), (*batch_shape, horizon, 3, 2))
    action = unroll(summing_learner(), jnp.float32(0.5), obs)
    np.testing.assert_allclose(action, 0.5 * np.cumsum(obs, axis=-3), rtol=1e-5, atol=1e-6)


def test_unroll_serves_a_learner_without_memory():
    learner = Learner(unused, unused, act=lambda gain, obs, carry: (gain * obs, carry), initial_carry=lambda shape: ())
    obs = jax.random.normal(jax.random.key(0), (4, 1, 2, 1))
    np.testing.assert_array_equal(unroll(learner, jnp.float32(3.0), obs), 3.0 * obs)


def test_unroll_differentiates_through_memory():
    # The action at the last token is the sum of all H observations: each has gradient one.
    gradient = jax.grad(lambda obs: jnp.sum(unroll(summing_learner(), jnp.float32(1.0), obs)[-1]))(jnp.ones((4, 3, 2)))
    np.testing.assert_array_equal(gradient, np.ones((4, 3, 2)))


def test_unroll_vmaps_over_seeds():
    gains = jnp.array([1.0, -2.0])
    obs = jax.random.normal(jax.random.key(0), (2, 5, 3, 2))
    together = jax.vmap(lambda gain, obs: unroll(summing_learner(), gain, obs))(gains, obs)
    for seed in range(2):
        np.testing.assert_allclose(together[seed], unroll(summing_learner(), gains[seed], obs[seed]), rtol=1e-6)
