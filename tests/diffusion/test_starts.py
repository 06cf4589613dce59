"""Where guided samples start (docs/starts.md): Eq. 15 in closed form, and what the sampler makes of it."""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.diffusion.edm import karras_sigmas
from coda_jax.diffusion.guidance import gaussian_log_prob, guidance_schedule, score_guide
from coda_jax.diffusion.samplers import Known, SamplerConfig, sample
from tests.diffusion.linear_gaussian import (
    BEHAVIOUR,
    DATA,
    STD,
    A,
    B,
    Gaussian,
    H,
    K,
    P,
    Policy,
    Q,
    U,
    given_start,
    ideal_denoiser,
    mismatch,
    mismatch_rms,
    spectrum,
    tilted,
    tilted_to,
    trajectories,
)

ROOT = Path(__file__).parents[2]

SHIFTED = Policy(K, 1.2)
"""The data's feedback with another mean: the data's density of its actions is the same in all states."""
OPPOSED = Policy(-0.5, 0.6)
"""Another feedback: the data act like it where s = 0.75."""
LIMIT = 1e7
NUM = 4000
PLAIN, THROUGH = (
    SamplerConfig(num_steps=32, through_denoiser=through, known_conditioning="regress") for through in (False, True)
)
BOTH = pytest.mark.parametrize("config", [PLAIN, THROUGH], ids=["plain", "through"])


# --- Eq. 15 in closed form ---


def weighted_moments(x, log_weight):
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    mean = weight @ x
    return mean, (x - mean).T @ ((x - mean) * weight[:, None])


def drawn(law, num):
    return np.random.default_rng(0).multivariate_normal(law.mean, law.covariance, num, method="cholesky")


def test_tilt_is_the_data_weighted_by_the_policy():
    rows, target = mismatch(OPPOSED)
    x, w = drawn(DATA, 200_000), 2.0
    mean, covariance = weighted_moments(x, -0.5 * w * np.sum((x @ rows.T - target) ** 2, axis=1))
    exact = tilted(DATA, OPPOSED, w)
    np.testing.assert_allclose(mean, exact.mean, atol=0.01)
    np.testing.assert_allclose(covariance, exact.covariance, atol=0.01)


def test_limit_is_the_policys_rollouts_weighted_by_the_datas_density_of_their_actions():
    x = drawn(trajectories(OPPOSED, 1e-6), 200_000)
    state, action = x[:, ::2], x[:, 1::2]
    mean, covariance = weighted_moments(x, -0.5 * np.sum((action - K * state) ** 2, axis=1) / U**2)
    limit = tilted(DATA, OPPOSED, LIMIT)
    np.testing.assert_allclose(mean, limit.mean, atol=0.01)
    np.testing.assert_allclose(covariance, limit.covariance, atol=0.01)
    assert limit.mean[0] == pytest.approx(0.554, abs=5e-4)  # the number of the page
    assert np.sqrt(limit.covariance[0, 0]) == pytest.approx(0.498, abs=5e-4)


@pytest.mark.parametrize("w", [0.1, 1.0, 10.0, LIMIT])
@pytest.mark.parametrize("policy", [SHIFTED, OPPOSED, Policy(0.9, -2.0)])
def test_start_of_one_step_moves_by_a_gain_towards_the_state_of_agreement(policy, w):
    delta = policy.kappa - K
    law = tilted(trajectories(BEHAVIOUR, U, horizon=1), policy, w)
    gain = P * delta**2 / (P * delta**2 + U**2 + 1 / w)
    agreement = 0.0 if delta == 0 else -policy.mu / delta
    assert law.mean[0] == pytest.approx(gain * agreement, abs=1e-6)
    assert law.covariance[0, 0] == pytest.approx(P * (1 - gain), abs=1e-6)


@pytest.mark.parametrize("w", [0.1, 1.0, LIMIT])
def test_action_of_a_held_start_is_between_the_datas_and_the_policys(w):
    _, law = given_start(tilted(trajectories(BEHAVIOUR, U, horizon=1), OPPOSED, w), 2.0)
    wanted = OPPOSED.kappa * 2.0 + OPPOSED.mu
    assert law.mean[1] == pytest.approx((K * 2.0 + w * U**2 * wanted) / (1 + w * U**2), abs=1e-6)


@pytest.mark.parametrize("w", [0.1, 1.0, LIMIT])
def test_starts_stay_where_the_datas_density_of_the_policys_action_is_the_same_in_all_states(w):
    law = tilted(DATA, SHIFTED, w)
    assert law.mean[0] == pytest.approx(0.0, abs=1e-9)
    assert law.covariance[0, 0] == pytest.approx(P, abs=1e-9)


def test_given_the_start_the_limit_is_on_policy_where_it_does_not_select_at_all():
    for start in (-1.0, 2.0):
        _, law = given_start(tilted(DATA, SHIFTED, LIMIT), start)
        exact = trajectories(SHIFTED, 0.0, start=(start, 0.0))
        np.testing.assert_allclose(law.mean, exact.mean, atol=1e-5)
        np.testing.assert_allclose(law.covariance, exact.covariance, atol=1e-5)


def test_given_the_start_the_limit_still_selects_the_noise_of_the_dynamics():
    """Actions are the policy's; the next state moves toward agreement by a gain of the noise's variance."""
    delta, start = OPPOSED.kappa - K, -1.0
    _, law = given_start(tilted(trajectories(BEHAVIOUR, U, horizon=2), OPPOSED, LIMIT), start)
    action = OPPOSED.kappa * start + OPPOSED.mu
    assert law.mean[1] == pytest.approx(action, abs=1e-5)
    gain = Q**2 * delta**2 / (Q**2 * delta**2 + U**2)
    on_policy, agreement = A * start + B * action, -OPPOSED.mu / delta
    assert law.mean[2] == pytest.approx(on_policy + gain * (agreement - on_policy), abs=1e-5)
    assert law.covariance[2, 2] == pytest.approx(Q**2 * (1 - gain), abs=1e-6)
    assert gain == pytest.approx(0.0175, abs=5e-5)  # the number of the page


@pytest.mark.parametrize("sigma", [0.02, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("w", [0.5, 50.0])
def test_exact_guidance_is_the_pull_back_of_the_mismatch_over_its_posterior_covariance(sigma, w):
    """D of the tilt is D + sigma^2 J G' (sigma^2 G J G' + I/w)^-1 (c - G D), J the Jacobian of D."""
    rows, target = mismatch(OPPOSED)

    def denoise(law, tau):
        jacobian = law.covariance @ np.linalg.inv(law.covariance + sigma**2 * np.eye(2 * H))
        return law.mean + jacobian @ (tau - law.mean), jacobian

    tau = np.random.default_rng(1).normal(size=2 * H)
    denoised, jacobian = denoise(DATA, tau)
    spread = sigma**2 * rows @ jacobian @ rows.T + np.eye(H) / w
    guidance = sigma**2 * jacobian @ rows.T @ np.linalg.solve(spread, target - rows @ denoised)
    np.testing.assert_allclose(denoised + guidance, denoise(tilted(DATA, OPPOSED, w), tau)[0], atol=1e-9)


# --- the sampler ---


def recorded():
    """Starts of the data, known."""
    start = jax.random.normal(jax.random.key(1), (NUM,))
    mask = np.zeros((1, H, 2), bool)
    mask[0, 0, 0] = True
    return Known(jnp.zeros((NUM, H, 2)).at[:, 0, 0].set(start), jnp.asarray(mask))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(config, is_held, law, policy, scale):
    def decode(z):
        x = z * jnp.asarray(STD, jnp.float32).reshape(1, H, 2)
        return x[..., 1:], x[..., :1]

    def log_prob(action, state):
        return gaussian_log_prob(action, policy.kappa * state + policy.mu)

    guide, known = score_guide(log_prob, decode, slice(1, 2)), recorded() if is_held else None
    return sample(ideal_denoiser(law), jax.random.key(0), (NUM, H, 2), config, guide, scale, known)


def draw(config, is_held, policy=SHIFTED, scale=0.0, law=DATA):
    """Trajectories `[NUM, 2H]` in the data's units."""
    z = _draw(config, is_held, spectrum(law), Policy(*map(jnp.float32, policy)), jnp.float32(scale))
    return np.asarray(z, np.float64).reshape(NUM, -1) * STD


def rms(x):
    return np.sqrt(np.mean(x**2))


def mismatch_of(x, policy):
    rows, target = mismatch(policy)
    return rms(x @ rows.T - target)


def response(x, unguided):
    """How far next states follow the change of the actions, as `evaluation.action_response` measures it."""
    change = (x - unguided).reshape(NUM, H, 2)
    caused, followed = B * change[:, :-1, 1], change[:, 1:, 0] - A * change[:, :-1, 0]
    return np.sum(caused * followed) / np.sum(caused**2)


def on_policy_error(x, policy):
    """Error of s_1 and s_2 given s_0, in standard deviations of the policy's roll-outs from there; 1 is exact."""
    gain = given_start(trajectories(policy, 0.0))[0][::2]
    law = trajectories(policy, 0.0, start=(0.0, 0.0))
    error = x[:, ::2] - law.mean[::2] - x[:, :1] * gain
    return rms(error[:, 1:] / np.sqrt(np.diag(law.covariance))[2::2])


def assert_samples(x, law: Gaussian):
    """Mean and covariance to four standard errors, and a little for the sampler's finite steps."""
    std = np.sqrt(np.diag(law.covariance))
    np.testing.assert_array_less(np.abs(x.mean(axis=0) - law.mean), 0.07 * std + 0.002)
    np.testing.assert_allclose(np.cov(x.T), law.covariance, atol=0.09 * float(std.max()) ** 2)


def assert_samples_given_start(x, law: Gaussian):
    """Regression on the known starts, and what is left of them."""
    start = np.asarray(recorded().values[:, 0, 0], np.float64) * STD[0]
    np.testing.assert_allclose(x[:, 0], start, atol=1e-4)
    gain, at_zero = given_start(law)
    fit, *_ = np.linalg.lstsq(np.stack([start, np.ones(NUM)], axis=1), x, rcond=None)
    np.testing.assert_allclose(fit, [gain, at_zero.mean], atol=0.05)
    left = x - start[:, None] * fit[0] - fit[1]
    np.testing.assert_allclose(np.cov(left.T), at_zero.covariance, atol=0.1 * float(at_zero.covariance.max()) + 0.001)


def test_without_guidance_the_sampler_draws_the_data():
    assert_samples(draw(PLAIN, False), DATA)


def test_without_guidance_known_starts_give_the_conditional_distribution():
    assert_samples_given_start(draw(PLAIN, True), DATA)


@pytest.mark.parametrize("w", [1.0, 30.0])
def test_with_the_tilts_own_denoiser_the_sampler_draws_the_tilt(w):
    law = tilted(DATA, OPPOSED, w)
    assert_samples(draw(PLAIN, False, law=law), law)
    assert_samples_given_start(draw(PLAIN, True, law=law), law)


@BOTH
@pytest.mark.parametrize("policy", [SHIFTED, OPPOSED])
def test_actions_of_held_starts_approach_the_policys(policy, config):
    apart = [mismatch_of(draw(config, True, policy, scale), policy) for scale in (0.0, 0.05, 0.1, 0.2)]
    assert apart[0] == pytest.approx(mismatch_rms(DATA, policy), rel=0.05)
    assert (np.diff(apart) < 0).all() and apart[-1] < 0.08 * apart[0]


def test_consequences_follow_through_the_denoiser_where_plain_guidance_leaves_them_behind():
    for policy in (SHIFTED, OPPOSED):
        unguided = draw(PLAIN, True, policy)
        plain, through = (response(draw(config, True, policy, 0.1), unguided) for config in (PLAIN, THROUGH))
        assert plain < 0.7 and through > 0.8
        assert 0.9 < response(draw(THROUGH, True, policy, 0.2), unguided) < 1.15


@pytest.mark.parametrize(("config", "scale"), [(PLAIN, 0.6), (THROUGH, 0.2)], ids=["plain", "through"])
def test_held_starts_come_near_the_policys_rollouts(config, scale):
    for policy, apart in ((SHIFTED, 6.5), (OPPOSED, 5.7)):
        assert on_policy_error(draw(config, True, policy), policy) == pytest.approx(apart, rel=0.05)
        assert on_policy_error(draw(config, True, policy, scale), policy) < (1.2 if config == PLAIN else 1.5)


@BOTH
def test_start_moves_as_a_far_policy_pushes_it(config):
    """Far from the policy the direction is constant; the flow carries each push along the covariance."""
    scale = 0.02
    unguided, pushed = (draw(config, False, Policy(K, 100.0), scale) for scale in (0.0, scale))
    sigmas, steps = np.asarray(karras_sigmas(32), np.float64), np.asarray(guidance_schedule("annealed", 32))
    covariance = DATA.covariance / np.outer(STD, STD)
    values, basis = np.linalg.eigh(covariance)
    shift = np.zeros(2 * H)
    for (sigma, following), step in zip(itertools.pairwise(sigmas), steps, strict=True):
        push = np.tile([0.0, 1.0], H) / np.sqrt(H)
        if config.through_denoiser:
            push = basis @ (values / (values + sigma**2) * (basis.T @ push))
            push /= np.linalg.norm(push)
        middle = (sigma + following) / 2  # of an Euler step that moves by (sigma' - sigma) d
        shift += scale * step * basis @ (np.sqrt(values / (values + middle**2)) * (basis.T @ push))
    np.testing.assert_allclose((pushed - unguided).mean(axis=0) / STD, shift, rtol=0.06)


def test_free_starts_of_the_sampler_are_not_those_of_the_tilt():
    """Eq. 15 leaves the starts where they are or draws them to a state; the sampler moves them otherwise."""
    for policy, plain in ((SHIFTED, 0.89), (OPPOSED, 0.34)):
        x = draw(PLAIN, False, policy, 0.6)
        assert mismatch_of(x, policy) < 0.05  # the limit, as far as actions tell
        assert x[:, 0].mean() == pytest.approx(plain, abs=0.06)
        assert abs(x[:, 0].mean() - tilted(DATA, policy, LIMIT).mean[0]) > 0.15
    assert draw(THROUGH, False, SHIFTED, 0.6)[:, 0].mean() > 3.5


def free_row(policy, scale):
    """A row of the page's first table: mismatch, start, and start of the tilt of equal mismatch, by both guidances."""
    row = []
    for config in (PLAIN, THROUGH):
        x = draw(config, False, policy, scale)
        apart = mismatch_of(x, policy)
        row += [apart, x[:, 0].mean(), tilted_to(DATA, policy, apart).mean[0]]
    return row


def held_row(policy, scale):
    """A row of the page's second table: mismatch, response and on-policy error, by both guidances."""
    row = []
    for config in (PLAIN, THROUGH):
        x, unguided = (draw(config, True, policy, s) for s in (scale, 0.0))
        row += [mismatch_of(x, policy), response(x, unguided), on_policy_error(x, policy)]
    return row


@pytest.mark.slow
@pytest.mark.parametrize(("heading", "row_of"), [("Free starts", free_row), ("Held starts", held_row)])
def test_the_tables_of_the_page(heading, row_of):
    section = (ROOT / "docs" / "starts.md").read_text().split(f"### {heading}")[1].split("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    policies = {"shifted": SHIFTED, "opposed": OPPOSED}
    assert len(rows) == 2 + 10
    for name, scale, *numbers in rows[2:]:
        np.testing.assert_allclose(row_of(policies[name], float(scale)), [*map(float, numbers)], rtol=0.02, atol=0.015)
