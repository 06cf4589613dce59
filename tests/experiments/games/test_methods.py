"""The methods on games with ideal denoisers in place of fitted ones: what they sample, and where policies then end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax import transforms
from coda_jax.augmentation.classifier_free import LARGEST_CONDITION, action_condition
from coda_jax.augmentation.return_conditioned import return_condition
from coda_jax.diffusion.generator import Generator, GeneratorConfig
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, as_trajectory, reward, sample_actions, twin_peaks
from coda_jax.marl.stateless_maddpg import CriticConfig, StatelessMaddpgConfig, fit_critic
from experiments.games.methods import (
    STATIC_METHODS,
    TRUE_GRADIENT,
    GameCodaConfig,
    GamePrior,
    Generators,
    game_methods,
)

PEAKS = twin_peaks()
SAMPLER, GUIDED_SAMPLER = SamplerConfig(num_steps=24), SamplerConfig(num_steps=64)
START = jnp.asarray([[-0.64], [0.65]])


def unused(*_):
    raise AssertionError("no fit is asked for")


def ideal(condition_noise: float, channels: slice) -> Generator:
    """The denoiser of independent standard normal channels, some of which y tells up to Gaussian noise."""

    def denoise(params, tau, sigma, condition=None):
        precision = 1.0 + 1.0 / sigma**2
        if condition is None:
            return tau / sigma**2 / precision
        told = jnp.zeros(tau.shape[-1]).at[channels].set(1.0 / max(condition_noise, 1e-4) ** 2)
        y = jnp.zeros(tau.shape).at[..., channels].set(condition[:, None])
        told = told[None, None]
        return (tau / sigma**2 + told * y) / (precision + told)

    return Generator(unused, unused, unused, denoise, GeneratorConfig())


def generators(condition_noise: float = 0.0) -> Generators:
    return Generators(ideal(condition_noise, slice(0, 2)), ideal(0.0, slice(2, 3)))


@functools.cache
def prior_of(game, name="uniform") -> GamePrior:
    dataset = as_trajectory(game, sample_actions(DatasetConfig(name), jax.random.key(0)))
    transform = transforms.fit(np.asarray(transforms.pack(dataset))[:, 0])
    return GamePrior(dataset=dataset, transform=transform, policy_denoiser={}, return_denoiser={}, critic=None)


def build(game, condition_noise=0.0, critic=None, **settings):
    models, config = generators(condition_noise), GameCodaConfig(**settings)
    return game_methods(game, models, config, SAMPLER, GUIDED_SAMPLER, StatelessMaddpgConfig(), critic)


def train(game, method, num_updates=120, theta=START, seed=1, **settings):
    prior = prior_of(game)
    methods = build(game, **settings)
    run = jax.jit(lambda theta, key: methods.train(method, prior, prior.dataset, theta, key, num_updates))
    return jax.tree.map(np.asarray, run(theta, jax.random.key(seed)))


@pytest.mark.parametrize("theta", [(-0.64, 0.65), (0.0, 0.0), (0.9, 0.9), (0.2, -0.95)])
def test_conditioned_samples_are_the_policys_joint_action(theta):
    theta, prior = jnp.asarray(theta)[:, None], prior_of(PEAKS)
    sample = jax.jit(lambda theta, prior: build(PEAKS).sample_at("coda", prior, theta, jax.random.key(2), 256))
    action = np.asarray(sample(theta, prior).action)[:, 0]
    np.testing.assert_allclose(action.mean(axis=0), theta, atol=0.005)
    assert action.std(axis=0).max() < 0.01


def test_data_at_one_point_cannot_be_left():
    prior = prior_of(PEAKS, "point")
    for method in ("coda", "coda-guided"):
        sample = jax.jit(lambda key, m=method: build(PEAKS).sample_at(m, prior, START, key, 8))
        np.testing.assert_array_equal(sample(jax.random.key(2)).action, 0.0)


def test_with_noise_on_y_the_conditioned_samples_follow_eq_15():
    # Prior N(0, 1) in diffusion space, y = z + s_y noise, w = 0: the posterior is
    # N(y / (1 + s_y^2), s_y^2 / (1 + s_y^2)).
    s_y, theta = 0.5, jnp.asarray([[-0.4], [0.5]])
    prior = prior_of(PEAKS)
    encoding = transforms.select(prior.transform, slice(0, 2))
    y = np.asarray(transforms.forward(encoding, theta.reshape(1, 2), jax.random.key(3)))[0]
    methods = build(PEAKS, s_y, w=0.0)
    sample = jax.jit(lambda theta: methods.sample_at("coda", prior, theta, jax.random.key(4), 4096))
    z = np.asarray(transforms.forward(encoding, sample(theta).action[:, 0, :, 0], jax.random.key(5)))
    np.testing.assert_allclose(z.mean(axis=0), y / (1 + s_y**2), atol=0.04)
    np.testing.assert_allclose(z.var(axis=0), s_y**2 / (1 + s_y**2), rtol=0.1)


def test_the_noise_on_y_has_its_standard_deviation():
    z = jax.random.uniform(jax.random.key(0), (4000, 1, 4), minval=-2.0, maxval=2.0)
    action = action_condition(PEAKS.spec, noise=0.3)(z, jax.random.key(1))
    np.testing.assert_allclose(np.std(action - z[:, 0, :2]), 0.3, rtol=0.05)
    np.testing.assert_array_equal(action_condition(PEAKS.spec)(z, jax.random.key(1)), z[:, 0, :2])
    np.testing.assert_array_equal(return_condition(z, jax.random.key(1)), z[:, 0, 2:3])


def test_conditions_beyond_what_the_data_often_hold_are_clipped_in_training_and_sampling():
    action = action_condition(MULTIPLICATION.spec)(jnp.asarray([[[-9.0, 2.25, 0.0, 0.0]]]), jax.random.key(0))
    np.testing.assert_array_equal(action, [[-LARGEST_CONDITION, 2.25]])
    # 2.5 logits of variance 1 are the rank 0.9893, on uniform data the action 0.979: any policy beyond is led there.
    prior = prior_of(MULTIPLICATION)
    sample = jax.jit(lambda theta: build(MULTIPLICATION).sample_at("coda", prior, theta, jax.random.key(1), 64).action)
    np.testing.assert_array_equal(sample(jnp.ones((2, 1))), sample(jnp.full((2, 1), 0.99)))
    np.testing.assert_allclose(sample(jnp.ones((2, 1))), 0.979, atol=0.01)


def test_guided_samples_gather_around_the_policy_and_unguided_ones_do_not():
    theta = jnp.asarray([[0.3], [-0.5]])
    spread = {}
    for guidance in (0.0, 0.2):
        methods = build(PEAKS, guidance=guidance)
        sample = jax.jit(lambda t, m=methods: m.sample_at("coda-guided", prior_of(PEAKS), t, jax.random.key(6), 512))
        action = np.asarray(sample(theta).action)[:, 0]
        spread[guidance] = np.abs(action - np.asarray(theta)).mean()
        if guidance:
            np.testing.assert_allclose(action.mean(axis=0), theta, atol=0.05)
    assert spread[0.2] < 0.05 < 0.4 < spread[0.0]


@pytest.mark.parametrize(
    ("game", "best"), [(MULTIPLICATION, 1.0), (PEAKS, 0.5625)], ids=("multiplication", "twin-peaks")
)
@pytest.mark.parametrize("method", ["coda", "coda-guided"])
def test_coda_reaches_the_optimum_along_the_true_gradient(game, best, method):
    path = train(game, method)
    assert reward(game, jnp.asarray(path.theta[-1])[:, None]) > 0.99 * best
    true = np.asarray(jax.vmap(jax.grad(lambda t: reward(game, t[:, None])))(jnp.asarray(path.theta[2:-1])))
    found = path.gradient[2:]
    norm = np.linalg.norm(true, axis=-1)
    cosine = np.sum(true * found, axis=-1) / norm / np.linalg.norm(found, axis=-1)
    assert cosine[norm > 0.1].min() > 0.95


@pytest.mark.parametrize("start", [(-0.64, 0.55), (0.3, 0.8), (-0.9, -0.1)])
def test_the_true_gradient_is_followed_exactly_without_burn_in_on_the_data(start):
    theta = np.array(start)
    path = train(MULTIPLICATION, TRUE_GRADIENT, num_updates=60, theta=jnp.asarray(start)[:, None])
    for _ in range(62):
        gradient = theta[::-1]
        theta = np.clip(theta + 0.1 * gradient / max(1.0, np.linalg.norm(gradient)), -1.0, 1.0)
    np.testing.assert_allclose(path.theta[-1], theta, atol=1e-3)
    assert path.theta.shape == (63, 2) and path.gradient.shape == (62, 2)


def test_without_augmentation_centred_data_collapse_to_the_origin():
    path = train(PEAKS, "none")
    assert np.abs(path.theta[-50:].mean(axis=0)).max() < 0.05


def test_all_methods_burn_in_on_the_recorded_data():
    first = [train(PEAKS, method, num_updates=4).theta for method in ("none", "coda")]
    np.testing.assert_array_equal(first[0][:3], first[1][:3])
    assert (first[0][3:] != first[1][3:]).all()


def test_a_renewal_serves_as_many_updates_as_asked_and_is_of_the_policy_it_began_with():
    path = train(MULTIPLICATION, "coda", num_updates=6, updates_per_renewal=3, burn_in=0)
    assert path.theta.shape == (3, 2)
    # The gradient of multiplication is the other's action in the data: that of the renewal, three updates long.
    np.testing.assert_allclose(path.gradient, path.theta[:2, ::-1], atol=0.01)


def test_static_sets_are_the_data_the_prior_and_its_high_returns():
    prior = prior_of(PEAKS)
    methods = build(PEAKS)
    sets = {name: methods.static_set(name, prior, jax.random.key(7)) for name in STATIC_METHODS}
    assert sets["none"] is prior.dataset
    for name in ("unconditional", "q-conditioned"):
        assert sets[name].action.shape == (4000, 1, 2, 1)
    recorded = np.asarray(prior.dataset.reward)
    unconditional = np.asarray(sets["unconditional"].reward)
    for share in (0.1, 0.5, 0.9):
        below = np.mean(unconditional < np.quantile(recorded, share))
        np.testing.assert_allclose(below, share, atol=4 * np.sqrt(2 * share * (1 - share) / 4000))
    assert np.quantile(np.asarray(sets["q-conditioned"].reward), 0.05) > np.quantile(recorded, 0.97)


@pytest.mark.slow
def test_a_fitted_critic_is_used_in_place_of_the_reward():
    prior = prior_of(MULTIPLICATION)
    config = CriticConfig(num_updates=1)  # not fitted at all: another gradient than the known reward's
    params, _ = fit_critic(config, prior.dataset, jax.random.key(8))
    methods = build(MULTIPLICATION, critic=config)
    path = methods.train("none", prior.replace(critic=params), prior.dataset, START, jax.random.key(9), 1)
    known = train(MULTIPLICATION, "none", num_updates=1, seed=9)
    assert np.abs(path.gradient - known.gradient).max() > 1e-3
