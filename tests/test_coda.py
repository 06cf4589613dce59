"""Algorithm 2 on a world without physics, small enough to run in full; and lowered whole for accelerators on MJX."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from coda_jax import transforms
from coda_jax.coda import CodaConfig, Plan, Prior, across_seeds, coda, mix, policy_guide, simulate_trajectories
from coda_jax.data.dataset import make_dataset, sample_windows
from coda_jax.diffusion.generator import GeneratorConfig, make_generator
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.diffusion.unet import UNetConfig
from coda_jax.envs import mamujoco
from coda_jax.evaluation import action_log_likelihood
from coda_jax.marl.input_scale import raw_inputs
from coda_jax.marl.learner import unroll
from coda_jax.marl.maddpg_bc import MaddpgBcConfig, maddpg_bc
from coda_jax.types import Trajectory
from tests.drift import DRIFT, SPEC, noise_episodes

CONFIG = CodaConfig(horizon=4, batch_size=8, num_trajectories=24, chunk_size=16, evaluation_episodes=3)
SAMPLER = SamplerConfig(num_steps=4)
LEARNER = MaddpgBcConfig(policy_linear_width=8, policy_hidden_width=8, critic_widths=(8,))
GENERATOR = GeneratorConfig(unet=UNetConfig(width=4, embedding_dim=4))


def plan(generate=False, num_updates=0, evaluate=False, guidance=0.0, mix_ratio=0.0) -> Plan:
    return Plan(
        generate=jnp.bool_(generate),
        num_updates=jnp.int32(num_updates),
        evaluate=jnp.bool_(evaluate),
        guidance=jnp.float32(guidance),
        mix_ratio=jnp.float32(mix_ratio),
    )


@pytest.fixture(scope="module")
def learner():
    return maddpg_bc(SPEC, LEARNER, raw_inputs(SPEC))


@pytest.fixture(scope="module")
def generator():
    return make_generator(GENERATOR, transforms.num_channels(SPEC), CONFIG.horizon)


@pytest.fixture(scope="module")
def prior(generator) -> Prior:
    dataset = make_dataset(noise_episodes(SPEC, 6, 10), CONFIG.horizon)
    params = generator.init(jax.random.key(7)).params
    # An untrained network's last layer is zero; without noise on it the denoiser would not look at the rest.
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(8), len(leaves))
    params = jax.tree.unflatten(
        structure, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )
    return Prior(dataset=dataset, transform=transforms.fit(transforms.pack(dataset.steps)), denoiser=params)


@pytest.fixture(scope="module")
def single(learner, generator):
    return coda(DRIFT, learner, generator, CONFIG, SAMPLER)


def mesh_of(num_devices: int) -> Mesh:
    return jax.make_mesh((num_devices,), ("seed",), axis_types=(AxisType.Auto,), devices=jax.devices()[:num_devices])


def start(program, mesh, seeds):
    keys = jax.device_put(jax.vmap(jax.random.key)(np.asarray(seeds)), NamedSharding(mesh, PartitionSpec("seed")))
    return jax.jit(program.init)(keys)


def assert_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), **tolerance)


def again(state):
    """The same state, for another use of its key, which the checks of key reuse would refuse."""
    return state.replace(key=jax.random.clone(state.key))


FULL = plan(generate=True, num_updates=10, evaluate=True, guidance=0.6, mix_ratio=0.5)


@pytest.fixture(scope="module")
def two_seeds_on_one_device(single, prior):
    mesh = mesh_of(1)
    program = across_seeds(single, mesh)
    return jax.jit(program.round)(start(program, mesh, [3, 4]), prior, FULL)


def test_vmapped_seeds_equal_the_same_seeds_alone(single, prior, two_seeds_on_one_device):
    for row, seed in enumerate([3, 4]):
        state, report = jax.jit(single.round)(jax.jit(single.init)(jax.random.key(seed)), prior, FULL)
        together = jax.tree.map(lambda leaf, row=row: leaf[row], two_seeds_on_one_device)
        assert_close((state, report), together, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_two_devices_equal_one(single, prior, two_seeds_on_one_device):
    mesh = mesh_of(2)
    program = across_seeds(single, mesh)
    apart = jax.jit(program.round)(start(program, mesh, [3, 4]), prior, FULL)
    assert {shard.device for shard in apart[1].returns.addressable_shards} == set(mesh.devices.flat)
    assert_close(apart, two_seeds_on_one_device, rtol=2e-4, atol=2e-5)


def test_nothing_is_compiled_after_the_first_round_whatever_the_plan(single, prior):
    mesh = mesh_of(2)
    program = across_seeds(single, mesh)
    state = start(program, mesh, [0, 1])
    shared = NamedSharding(mesh, PartitionSpec())
    placed = jax.device_put(prior, shared)
    plans = [
        jax.device_put(p, shared)
        for p in (
            FULL,
            plan(evaluate=True),
            plan(num_updates=3, mix_ratio=1.0),
            dataclasses.replace(FULL, guidance=jnp.float32(0.0)),
        )
    ]
    round_ = jax.jit(program.round, donate_argnums=0)
    state, _ = round_(state, placed, plans[0])
    compiled = []

    def listen(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for each in plans:
            before = state
            state, _ = round_(state, placed, each)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))  # donated
        assert compiled == []
        jax.jit(lambda x: x * 3.0 + 17.0)(jnp.ones(3))
        assert len(compiled) > 0  # the listener hears
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_without_augmentation_a_round_is_the_learner_on_windows_of_the_dataset(single, learner, prior):
    state = jax.jit(single.init)(jax.random.key(5))
    after, report = jax.jit(single.round)(again(state), prior, plan(num_updates=3))
    _, _, key_train = jax.random.split(state.key, 3)
    expected, losses = state.learner, []
    for step in range(3):
        key_real, _, key_update = jax.random.split(jax.random.fold_in(jax.random.clone(key_train), step), 3)
        batch = sample_windows(prior.dataset, key_real, CONFIG.batch_size, CONFIG.horizon)
        expected, metrics = jax.jit(learner.update)(expected, batch, key_update)
        losses.append(float(metrics["critic_loss"]))
    assert_close(after.learner, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(report.metrics["critic_loss"], np.mean(losses), rtol=1e-4)
    assert_close(after.synthetic, state.synthetic)
    np.testing.assert_array_equal(report.returns, 0.0)  # nobody asked for an evaluation


def test_evaluation_is_noise_free_and_starts_alike_in_every_round(single, prior):
    run = jax.jit(single.round)
    state = jax.jit(single.init)(jax.random.key(5))
    state, first = run(state, prior, plan(evaluate=True))
    _, second = run(state, prior, plan(evaluate=True))
    np.testing.assert_array_equal(first.returns, second.returns)
    assert np.ptp(first.returns) > 0


def test_synthetic_trajectories_stay_inside_the_data_and_guidance_makes_them_likelier(single, learner, prior):
    run = jax.jit(single.round)
    state = jax.jit(single.init)(jax.random.key(5))
    likelihood = {}
    for guidance in (0.0, 0.2):
        after, _ = run(again(state), prior, plan(generate=True, guidance=guidance))
        for name in ("state", "obs", "action", "reward", "terminal"):
            made, real = after.synthetic[name], prior.dataset.steps[name]
            assert made.min() >= real.min() and made.max() <= real.max()
        likelihood[guidance] = float(action_log_likelihood(learner, state.learner, after.synthetic).mean())
        _, report = run(after, prior, plan(mix_ratio=0.5))
        np.testing.assert_allclose(report.metrics["synthetic_log_likelihood"], likelihood[guidance], rtol=1e-4)
    assert likelihood[0.2] > likelihood[0.0] + 0.1, likelihood


def test_simulated_trajectories_are_the_policy_s_from_recorded_states(learner, prior):
    """Step by step what the environment makes of the policy's actions."""
    state = learner.init(jax.random.key(5))
    made = jax.jit(
        lambda dataset, key: simulate_trajectories(DRIFT, learner, state, dataset, key, (24, CONFIG.horizon), 10)
    )(prior.dataset, jax.random.key(6))
    assert made.reward.shape == (24, CONFIG.horizon)
    starts = {tuple(row) for row in np.asarray(prior.dataset.steps.state)}
    assert {tuple(row) for row in np.asarray(made.state[:, 0])} <= starts
    np.testing.assert_allclose(made.action, unroll(learner, state, made.obs), atol=1e-6)
    np.testing.assert_allclose(made.state[:, 1:], made.state[:, :-1] + 0.1 * made.action[:, :-1, :, 0], atol=1e-6)
    np.testing.assert_allclose(made.reward, made.action.sum(axis=(2, 3)), atol=1e-6)


def test_the_guide_points_from_the_decoded_actions_to_the_policy(learner, prior):
    """Alg. 1, l. 12-15 in closed form: the score of N(mu, 1) is mu - a, divided by its norm over the trajectory."""
    state = learner.init(jax.random.key(2))
    denoised = jax.random.normal(jax.random.key(3), (5, CONFIG.horizon, transforms.num_channels(SPEC)))
    direction = policy_guide(learner, state, prior.transform, SPEC)(denoised)
    decoded = transforms.unpack(transforms.inverse(prior.transform, denoised), SPEC)
    carry, mus = learner.initial_carry((5,)), []
    for t in range(CONFIG.horizon):
        mu, carry = learner.act(state, decoded.obs[:, t], carry)
        mus.append(mu)
    score = (jnp.stack(mus, 1) - decoded.action).reshape(5, CONFIG.horizon, -1)
    score = score / jnp.sqrt(jnp.sum(score**2, axis=(1, 2), keepdims=True))
    actions = transforms.action_channels(SPEC)
    np.testing.assert_allclose(direction[..., actions], score, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(jnp.delete(direction, np.arange(actions.start, actions.stop), axis=-1), 0.0)


@pytest.mark.parametrize(("ratio", "synthetic_rows"), [(0.0, 0), (0.5, 4), (0.8, 6), (1.0, 8)])
def test_mix(ratio, synthetic_rows):
    def constant(value):
        return Trajectory(
            state=jnp.full((8, 4, 2), value),
            obs=jnp.full((8, 4, 2, 1), value),
            action=jnp.full((8, 4, 2, 1), value),
            reward=jnp.full((8, 4), value),
            terminal=jnp.full((8, 4), value),
        )

    mixed = mix(constant(0.0), constant(1.0), jnp.float32(ratio))
    for leaf in jax.tree.leaves(mixed):
        rows = leaf.reshape(8, -1)
        np.testing.assert_array_equal(rows, np.broadcast_to((np.arange(8) < synthetic_rows)[:, None], rows.shape))


def test_nans_are_flagged_by_phase_and_seed(single, prior):
    mesh = mesh_of(1)
    program = across_seeds(single, mesh)
    run = jax.jit(program.round)
    state = start(program, mesh, [0, 1])
    broken_learner = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), state.learner.policy)
    _, report = run(again(state).replace(learner=state.learner.replace(policy=broken_learner)), prior, FULL)
    assert np.asarray(report.finite["update"]).tolist() == [True, False]
    assert np.asarray(report.finite["evaluate"]).tolist() == [True, False]
    broken_prior = prior.replace(denoiser=jax.tree.map(lambda leaf: leaf * jnp.nan, prior.denoiser))
    _, report = run(again(state), broken_prior, FULL)
    assert np.asarray(report.finite["generate"]).tolist() == [False, False]
    _, report = run(state, broken_prior, plan(num_updates=2, evaluate=True))  # the prior is not used
    assert all(np.all(flags) for flags in report.finite.values())


def test_the_whole_round_on_mjx_lowers_for_accelerators_without_host_callbacks():
    env = mamujoco.make("2halfcheetah")
    config = dataclasses.replace(CONFIG, horizon=20)
    learner = maddpg_bc(env.spec, LEARNER, raw_inputs(env.spec))
    generator = make_generator(GENERATOR, transforms.num_channels(env.spec), config.horizon)
    mesh = mesh_of(2)
    program = across_seeds(coda(env, learner, generator, config, SAMPLER), mesh)
    shapes = functools.partial(jax.tree.map, lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    dataset = make_dataset(noise_episodes(env.spec, 1, 40), config.horizon)
    prior = Prior(
        dataset=dataset,
        transform=transforms.fit(transforms.pack(dataset.steps)),
        denoiser=jax.eval_shape(generator.init, jax.random.key(0)).params,
    )
    state = jax.eval_shape(program.init, jax.vmap(jax.random.key)(np.arange(2)))
    exported = jax.export.export(jax.jit(program.round), platforms=("cuda", "tpu"))(*map(shapes, (state, prior, FULL)))
    assert set(exported.platforms) == {"cuda", "tpu"}
    assert exported.nr_devices == 2
    called = set(re.findall(r"custom_call @(\w+)", exported.mlir_module()))
    assert not any("callback" in name for name in called), called
