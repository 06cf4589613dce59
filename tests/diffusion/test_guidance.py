import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from coda_jax.diffusion.guidance import classifier_free, gaussian_log_prob, guidance_schedule, score_guide

# Tokens of two agents, packed as [state 2 | observations 2 x 3 | actions 2 x 2 | reward, terminal].
AGENTS, OBS_DIM, ACTION_DIM = 2, 3, 2
OBS, ACTION, C = slice(2, 8), slice(8, 12), 14


def decode_identity(z):
    action, obs = z[..., ACTION], z[..., OBS]
    return action.reshape(*z.shape[:-1], AGENTS, ACTION_DIM), obs.reshape(*z.shape[:-1], AGENTS, OBS_DIM)


def decode(z):
    """Decodes a diffusion space with other units than the environment: tanh of actions, doubled observations."""
    action, obs = decode_identity(z)
    return jnp.tanh(action), 2.0 * obs


def policy(obs):
    weights = jax.random.normal(jax.random.key(3), (AGENTS, OBS_DIM, ACTION_DIM))
    return jnp.tanh(jnp.einsum("...ao,aou->...au", obs, weights))


def log_prob(action, obs):
    return gaussian_log_prob(action, policy(obs))


def trajectories(seed, batch=5, horizon=4):
    return jax.random.normal(jax.random.key(seed), (batch, horizon, C))


def outside(direction):
    return np.delete(np.asarray(direction), np.r_[ACTION], axis=-1)


# --- schedule ---


def test_annealed_schedule_is_the_published_one_at_128_steps():
    lambdas = np.asarray(guidance_schedule("annealed", 128))
    n = np.arange(127)
    np.testing.assert_allclose(lambdas[:-1], 1 - n / 128 + 0.3 * np.sin(np.pi * (n + 1) / 128), rtol=1e-6)
    assert lambdas[-1] == 0.0


@settings(max_examples=20)
@given(num_steps=st.integers(2, 512))
def test_schedules_give_about_the_same_total_at_any_number_of_steps(num_steps):
    # The integrals: constant 1; annealed 1/2 + 0.3 * 2/pi, and a left Riemann sum is off by (f(0) - f(1)) / 2N.
    annealed, constant = (np.asarray(guidance_schedule(kind, num_steps)) for kind in ("annealed", "constant"))
    np.testing.assert_allclose(constant, 128.0 / num_steps, rtol=1e-6)
    assert annealed[-1] == 0.0 and (annealed[:-1] > 0.0).all()
    assert abs(annealed.sum() / 128.0 - (0.5 + 0.6 / np.pi)) < 0.6 / num_steps


# --- score of the policy ---


def test_gaussian_surrogate_sums_over_horizon_agents_and_actions():
    action, mu = (np.asarray(jax.random.normal(jax.random.key(s), (5, 4, AGENTS, ACTION_DIM))) for s in (0, 1))
    expected = stats.norm.logpdf(action, loc=mu, scale=1.0).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(gaussian_log_prob(jnp.asarray(action), jnp.asarray(mu)), expected, rtol=1e-5)


def test_direction_in_action_units_is_mu_minus_action():
    z = trajectories(0)
    direction = jax.jit(score_guide(log_prob, decode, ACTION, normalise=False))(z)
    action, obs = decode(z)
    expected = (policy(obs) - action).reshape(5, 4, AGENTS * ACTION_DIM)
    np.testing.assert_allclose(direction[..., ACTION], expected, rtol=1e-5, atol=1e-6)
    assert not outside(direction).any()


def test_direction_in_diffusion_space_follows_the_chain_rule():
    z = trajectories(0)
    direction = score_guide(log_prob, decode, ACTION, space="diffusion", normalise=False)(z)
    action, obs = decode(z)
    expected = ((policy(obs) - action) * (1.0 - action**2)).reshape(5, 4, AGENTS * ACTION_DIM)
    np.testing.assert_allclose(direction[..., ACTION], expected, rtol=1e-4, atol=1e-6)
    assert not outside(direction).any()


def test_joint_gradient_is_the_stack_of_the_agents_own_scores():
    z = trajectories(1)
    action, obs = decode(z)
    direction = jax.jit(score_guide(log_prob, decode, ACTION, normalise=False))(z)[..., ACTION].reshape(action.shape)
    for i in range(AGENTS):

        def own_log_prob(own_action, i=i):
            return gaussian_log_prob(own_action, policy(obs)[..., i, :]).sum()

        np.testing.assert_allclose(direction[..., i, :], jax.grad(own_log_prob)(action[..., i, :]), rtol=1e-5)


@pytest.mark.parametrize("space", ["action", "diffusion"])
def test_observations_are_held_fixed_in_the_score(space):
    # Observations equal to the actions: if they were differentiated, a policy that copies them would have no gradient.
    def decode_copying(z):
        action, _ = decode_identity(z)
        return action, action

    def copying(action, obs):
        return gaussian_log_prob(action, obs + 0.5)

    direction = score_guide(copying, decode_copying, ACTION, space=space, normalise=False)(trajectories(2))
    np.testing.assert_allclose(direction[..., ACTION], 0.5, rtol=1e-5)


@settings(max_examples=5)
@given(batch=st.integers(1, 6), horizon=st.integers(1, 5), space=st.sampled_from(["action", "diffusion"]))
def test_normalised_direction_has_unit_length_a_trajectory(batch, horizon, space):
    z = trajectories(batch + 10 * horizon, batch, horizon)
    plain, unit = (jax.jit(score_guide(log_prob, decode, ACTION, space=space, normalise=n))(z) for n in (False, True))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=(1, 2)), 1.0, rtol=1e-5)
    length = np.linalg.norm(plain, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(unit * length, plain, rtol=1e-4, atol=1e-6)


def test_trajectory_without_gradient_gets_no_direction():
    saturated = trajectories(4).at[..., ACTION].set(60.0)  # the derivative of tanh vanishes
    z = jnp.concatenate([saturated, trajectories(5)])
    direction = np.asarray(jax.jit(score_guide(log_prob, decode, ACTION, space="diffusion"))(z))
    assert not direction[:5].any()
    np.testing.assert_allclose(np.linalg.norm(direction[5:], axis=(1, 2)), 1.0, rtol=1e-5)


# --- App. B: one step along the direction ---


def test_one_step_contracts_exactly_for_scales_between_zero_and_two():
    lambdas = np.linspace(0.0, 4.0, 81, dtype=np.float32)
    z = trajectories(6)
    action, obs = decode_identity(z)
    mu = policy(obs)
    d = np.linalg.norm((action - mu).reshape(5, -1), axis=1)

    def moved(normalise):
        direction = score_guide(log_prob, decode_identity, ACTION, normalise=normalise)(z)
        return jnp.stack([decode_identity(z + lambda_ * direction)[0] for lambda_ in lambdas])

    def distance(actions):
        return np.linalg.norm((actions - mu[None]).reshape(len(lambdas), 5, -1), axis=-1)

    plain, unit = moved(normalise=False), moved(normalise=True)
    np.testing.assert_allclose(distance(plain), np.abs(1.0 - lambdas[:, None]) * d, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(distance(unit), np.abs(d - lambdas[:, None]), rtol=1e-5, atol=1e-5)
    gain = np.asarray(jax.vmap(log_prob, in_axes=(0, None))(plain, obs) - log_prob(action, obs)[None])
    np.testing.assert_allclose(gain, (lambdas * (1.0 - lambdas / 2.0))[:, None] * d**2, rtol=1e-4, atol=1e-4)
    inside = (lambdas > 0.0) & (lambdas < 2.0)
    assert (gain[inside] > 0.0).all() and (gain[lambdas > 2.0] < 0.0).all()


# --- classifier-free guidance ---


def conditional(tau, sigma):
    return jnp.tanh(tau) / (1.0 + sigma)


def unconditional(tau, sigma):
    return jnp.cos(tau + sigma)


def test_classifier_free_at_scale_zero_is_the_conditional_denoiser():
    tau, sigma = trajectories(7), jnp.float32(0.7)
    np.testing.assert_array_equal(classifier_free(conditional, unconditional, 0.0)(tau, sigma), conditional(tau, sigma))


@settings(max_examples=20)
@given(w=st.floats(0.0, 5.0), log_sigma=st.floats(-2.0, 4.0))
def test_classifier_free_combines_scores_as_in_equation_3(w, log_sigma):
    tau, sigma = trajectories(8), jnp.float32(np.exp(log_sigma))

    def score(denoise):
        return (np.asarray(denoise(tau, sigma), np.float64) - np.asarray(tau)) / float(sigma) ** 2

    combined = score(classifier_free(conditional, unconditional, w))
    expected = (1 + w) * score(conditional) - w * score(unconditional)
    np.testing.assert_allclose(combined, expected, rtol=1e-4, atol=1e-5 / float(sigma) ** 2)
