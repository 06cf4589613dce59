"""Adaptive guidance on a Gaussian prior whose denoiser is known, toward linear policies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from coda_jax import transforms
from coda_jax.augmentation.adaptive_guidance import AdaptiveGuidance, adapt_scale, initial_guidance
from coda_jax.augmentation.base import Augmentation
from coda_jax.coda import across_seeds, make_trainer
from coda_jax.data.dataset import make_dataset
from coda_jax.diffusion.edm import karras_sigmas
from coda_jax.diffusion.guidance import gaussian_log_prob, guidance_schedule, score_guide
from coda_jax.diffusion.samplers import SamplerConfig, sample
from coda_jax.evaluation import action_spread
from coda_jax.marl.learner import Learner, unroll
from coda_jax.ranges import RangeError
from coda_jax.schedule import CodaConfig
from experiments.host.checkpoints import Checkpoints
from tests.drift import DRIFT, SPEC, noise_episodes

HORIZON, SAMPLER, ACTION_STD = 2, SamplerConfig(num_steps=12), 0.5
CONFIG = CodaConfig(
    horizon=HORIZON,
    batch_size=4,
    epochs_per_round=1,
    updates_per_epoch=1,
    num_rounds=24,
    num_trajectories=1024,
    chunk_size=3 * 1024,
    evaluation_episodes=0,
    reference_trajectories=256,
)
OBS, ACTIONS = transforms.obs_channels(SPEC), transforms.action_channels(SPEC)
AUTO = AdaptiveGuidance(target=0.2, start=0.02)


def slope(key) -> jax.Array:
    return jax.random.uniform(key, minval=0.3, maxval=1.2)


LINEAR = Learner(
    init=slope,
    update=lambda state, trajectory, weights, key: (state, {}),
    act=lambda state, obs, carry: (state * obs, carry),
    initial_carry=lambda batch_shape: (),
)
"""The policy mu(o) = k o, with k of the seed; it does not learn."""


def gaussian(guidance: float | AdaptiveGuidance, normalise: bool = False) -> Augmentation:
    """Samples of independent N(0, 1), and N(0, ACTION_STD^2) for actions, guided as `guided` does."""
    variance = jnp.ones(transforms.num_channels(SPEC)).at[ACTIONS].set(ACTION_STD**2)

    def denoise(tau, sigma):
        return tau * (variance / (variance + sigma**2))[None, None]

    def decode(denoised):
        action, obs = denoised[..., ACTIONS], denoised[..., OBS]
        return action[..., None], obs[..., None]  # one number an agent

    def draw(state, dataset, prior, guidance, key, num):
        del dataset, prior

        def log_prob(action, obs):
            return gaussian_log_prob(action, unroll(LINEAR, state, obs))

        guide = score_guide(log_prob, decode, ACTIONS, normalise=normalise)
        shape = (num, HORIZON, transforms.num_channels(SPEC))
        return transforms.unpack(sample(denoise, key, shape, SAMPLER, guide, guidance), SPEC)

    return Augmentation(draw, guidance=guidance)


def exact_spread(k: float, lambda_: float) -> float:
    """Algorithm 1 on (o, a) of one agent, whose every step is linear: the spread of a - k o, in float64."""
    sigma = np.asarray(karras_sigmas(SAMPLER.num_steps), np.float64)
    scales = lambda_ * np.asarray(guidance_schedule("annealed", SAMPLER.num_steps), np.float64)
    variance, guide = np.array([1.0, ACTION_STD**2]), np.array([[0.0, 0.0], [k, -1.0]])

    def denoiser(level):
        return np.diag(variance / (variance + level**2))

    tau = sigma[0] * np.eye(2)  # what the two normal numbers of the start are multiplied by
    for now, following, scale in zip(sigma[:-1], sigma[1:], scales, strict=True):
        denoised = denoiser(now) @ tau
        d = (tau - denoised) / now
        tau = tau + scale * guide @ denoised
        euler = tau + (following - now) * d
        if following > 0:
            d = (d + (euler - denoiser(following) @ euler) / following) / 2
        tau = tau + (following - now) * d
    return float(np.linalg.norm(tau[1] - k * tau[0]))


def search(spread, target: float, low: float, high: float) -> float:
    """Bisection for the lambda of a spread that falls from `low` to `high`."""
    assert spread(low) > target > spread(high)
    for _ in range(20):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if spread(middle) > target else (low, middle)
    return float(np.sqrt(low * high))


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(noise_episodes(SPEC, 4, 10), HORIZON)


def seeds(augmentation):
    """The trainer of three seeds, its jitted round, and their state."""
    mesh = jax.make_mesh((1,), ("seed",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    trainer = across_seeds(make_trainer(DRIFT, LINEAR, augmentation, CONFIG, seeds_per_device=3), mesh)
    return trainer, jax.jit(trainer.round), jax.jit(trainer.init)(jax.random.split(jax.random.key(0), 3))


def play(round_, state, dataset, schedule):
    """The states after each round, and the metrics of the rounds of updates, each `[rounds, seeds]`."""
    states, metrics = [], []
    for scheduled in schedule:
        state, report = round_(state.replace(key=jax.random.clone(state.key)), dataset, (), scheduled.plan)
        states.append(state)
        if scheduled.kind == "train":
            metrics.append(report.metrics)
    return states, {name: np.stack([each[name] for each in metrics]) for name in metrics[0]}


@pytest.fixture(scope="module")
def adapted(dataset):
    trainer, round_, state = seeds(gaussian(AUTO))
    return trainer, round_, state, *play(round_, state, dataset, trainer.schedule)


def test_lambda_reaches_the_spread_where_a_direct_search_finds_it_for_each_seed(adapted):
    *_, states, metrics = adapted
    slopes, lambdas, spreads = np.asarray(states[0].learner), metrics["guidance"], metrics["action_spread"]
    np.testing.assert_allclose(lambdas[0], AUTO.start, rtol=1e-5)
    for row in (0, 1, -1):  # each spread is that of its lambda
        exact = [exact_spread(k, lambda_) for k, lambda_ in zip(slopes, lambdas[row], strict=True)]
        np.testing.assert_allclose(spreads[row], exact, rtol=0.05)
    np.testing.assert_allclose(spreads[-6:].mean(axis=0), AUTO.target, rtol=0.02)
    expected = [search(lambda scale, k=k: exact_spread(k, scale), AUTO.target, 1e-3, 0.15) for k in slopes]
    np.testing.assert_allclose(lambdas[-6:].mean(axis=0), expected, rtol=0.03)
    assert np.ptp(expected) > 0.1 * np.mean(expected)


def test_the_state_holds_what_the_last_round_used_and_each_step_is_proportional(adapted):
    *_, states, metrics = adapted
    np.testing.assert_array_equal(states[-1].guidance.scale, metrics["guidance"][-1])
    np.testing.assert_array_equal(states[-1].guidance.spread, metrics["action_spread"][-1])
    step = AUTO.rate * np.log(metrics["action_spread"][:-1] / AUTO.target)
    # Round 1 takes the trajectories of round 0, so that its lambda is the first.
    np.testing.assert_allclose(metrics["guidance"][1:], metrics["guidance"][:-1] * np.exp(step), rtol=1e-5)


def test_the_spread_stands_for_a_log_likelihood(adapted):
    *_, metrics = adapted
    numbers = HORIZON * SPEC.num_agents * SPEC.action_dim
    expected = -numbers / 2 * (np.log(2 * np.pi) + metrics["action_spread"] ** 2)
    np.testing.assert_allclose(metrics["synthetic_log_likelihood"], expected, rtol=1e-5)


def test_trajectories_without_guidance_neither_adapt_lambda_nor_use_it(adapted):
    trainer, _, state, states, _ = adapted
    assert [bool(r.plan.keep_reference) for r in trainer.schedule[:2]] == [True, False]
    np.testing.assert_array_equal(states[0].guidance.scale, state.guidance.scale)
    np.testing.assert_array_equal(states[0].guidance.spread, np.float32(AUTO.target))
    actions = np.asarray(states[0].reference.action)
    np.testing.assert_allclose(actions.std(), exact_spread(0.0, 0.0), rtol=0.1)


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(adapted, dataset, tmp_path):
    trainer, round_, state, states, _ = adapted
    checkpoints = Checkpoints(tmp_path / "train")
    checkpoints.save(3, states[3])
    restored = checkpoints.restore(state)
    checkpoints.close()
    assert restored is not None
    resumed, _ = play(round_, restored.tree, dataset, trainer.schedule[4:7])
    for one, other in zip(jax.tree.leaves(resumed[-1]), jax.tree.leaves(states[6]), strict=True):
        one, other = (
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (one, other)
        )
        np.testing.assert_array_equal(one, other)


def test_the_first_generation_is_that_of_the_constant_scale_whose_state_has_no_more(adapted, dataset):
    *_, states, _ = adapted
    trainer, round_, state = seeds(gaussian(AUTO.start))
    constant, metrics = play(round_, state, dataset, trainer.schedule[:3])
    np.testing.assert_allclose(constant[1].synthetic.action, states[1].synthetic.action, rtol=1e-4, atol=1e-5)
    assert all(not hasattr(each, "guidance") for each in constant)
    np.testing.assert_array_equal(metrics["guidance"], np.full((1, 3), np.float32(AUTO.start)))
    exact = [exact_spread(k, AUTO.start) for k in np.asarray(state.learner)]
    np.testing.assert_allclose(metrics["action_spread"][0], exact, rtol=0.05)


@pytest.mark.slow
def test_with_the_normalised_gradient_too_the_fixed_point_is_that_of_a_direct_search(dataset):
    config = dataclasses.replace(AUTO, target=0.3)
    coda = gaussian(config, normalise=True)
    trainer, round_, state = seeds(coda)
    slopes = np.asarray(state.learner)
    _, metrics = play(round_, state, dataset, trainer.schedule)

    @jax.jit
    def spread(k, scale):
        return action_spread(LINEAR, k, coda.sample(k, dataset, (), scale, jax.random.key(9), 8192))

    with jax.debug_key_reuse(False):
        expected = [search(lambda scale, k=k: spread(k, scale), config.target, 1e-3, 0.1) for k in slopes]
    np.testing.assert_allclose(metrics["guidance"][-6:].mean(axis=0), expected, rtol=0.05)


@pytest.mark.parametrize(("spread", "expected"), [(0.2, 0.1), (0.8, 0.2), (1e9, 0.5), (0.0, 0.01)])
def test_a_step_is_clipped_to_the_bounds(spread, expected):
    config = AdaptiveGuidance(target=0.2, start=0.1, lowest=0.01, highest=0.5)
    state = dataclasses.replace(initial_guidance(config), spread=jnp.float32(spread))
    np.testing.assert_allclose(adapt_scale(config, state, jnp.bool_(True)).scale, expected, rtol=1e-5)
    np.testing.assert_array_equal(adapt_scale(config, state, jnp.bool_(False)).scale, np.float32(0.1))


def test_a_start_outside_of_the_bounds_is_refused():
    with pytest.raises(RangeError, match="start is 2"):
        AdaptiveGuidance(start=2.0)


def test_tokens_with_actions_of_their_own_do_not_count():
    obs = jnp.ones((3, 4, 2, 1))
    action = jnp.full((3, 4, 2, 1), 0.5).at[:, :2].set(9.0)
    trajectory = transforms.unpack(jnp.zeros((3, 4, transforms.num_channels(SPEC))), SPEC).replace(
        obs=obs, action=action
    )
    np.testing.assert_allclose(action_spread(LINEAR, jnp.float32(0.2), trajectory, prefix=2), 0.3, rtol=1e-6)
