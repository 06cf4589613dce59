"""Algorithm 2 on a world without physics, small enough to run in full; and lowered whole for accelerators on MJX."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from coda_jax import transforms
from coda_jax.augmentation.base import Augmentation, sample_in_chunks
from coda_jax.augmentation.guided import guided, policy_guide
from coda_jax.augmentation.oracle import oracle
from coda_jax.augmentation.unconditional import unconditional
from coda_jax.coda import across_seeds, evaluation_key, make_trainer, mix, row_weights
from coda_jax.data.dataset import make_dataset, sample_windows
from coda_jax.diffusion.generator import GeneratorConfig
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.diffusion.unet import UNetConfig
from coda_jax.envs import mamujoco
from coda_jax.evaluation import action_log_likelihood
from coda_jax.marl.input_scale import raw_inputs
from coda_jax.marl.learner import uniform_weights, unroll
from coda_jax.marl.maddpg_bc import MaddpgBcConfig, maddpg_bc
from coda_jax.prior import Prior, make_model
from coda_jax.schedule import CodaConfig, Plan, make_schedule
from coda_jax.types import Trajectory
from tests.drift import DRIFT, SPEC, noise_episodes

CONFIG = CodaConfig(horizon=4, batch_size=8, num_trajectories=24, chunk_size=16, evaluation_episodes=3)
SAMPLER = SamplerConfig(num_steps=4)
LEARNER = MaddpgBcConfig(policy_linear_width=8, policy_hidden_width=8, critic_widths=(8,))
GENERATOR = GeneratorConfig(unet=UNetConfig(width=4, embedding_dim=4))


def plan(generate=False, keep_reference=False, num_updates=0, evaluate=False, guidance=0.0, mix_ratio=0.0) -> Plan:
    return Plan(
        generate=jnp.bool_(generate),
        keep_reference=jnp.bool_(keep_reference),
        num_updates=jnp.int32(num_updates),
        evaluate=jnp.bool_(evaluate),
        guidance=jnp.float32(guidance),
        mix_ratio=jnp.float32(mix_ratio),
    )


@pytest.fixture(scope="module")
def learner():
    return maddpg_bc(SPEC, LEARNER, raw_inputs(SPEC))


@pytest.fixture(scope="module")
def model():
    return make_model(SPEC, CONFIG.horizon, GENERATOR, SAMPLER)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(noise_episodes(SPEC, 6, 10), CONFIG.horizon)


@pytest.fixture(scope="module")
def prior(model, dataset) -> Prior:
    params = model.generator.init(jax.random.key(7)).params
    # An untrained network's last layer is zero; without noise on it the denoiser would not look at the rest.
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(8), len(leaves))
    params = jax.tree.unflatten(
        structure, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )
    return Prior(transform=transforms.fit(transforms.pack(dataset.steps)), denoiser=params)


@pytest.fixture(scope="module")
def single(learner, model):
    return make_trainer(DRIFT, learner, guided(model, learner, 0.6), CONFIG)


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
def two_seeds_on_one_device(single, dataset, prior):
    mesh = mesh_of(1)
    program = across_seeds(single, mesh)
    return jax.jit(program.round)(start(program, mesh, [3, 4]), dataset, prior, FULL)


def test_vmapped_seeds_equal_the_same_seeds_alone(single, dataset, prior, two_seeds_on_one_device):
    for row, seed in enumerate([3, 4]):
        state, report = jax.jit(single.round)(jax.jit(single.init)(jax.random.key(seed)), dataset, prior, FULL)
        together = jax.tree.map(lambda leaf, row=row: leaf[row], two_seeds_on_one_device)
        assert_close((state, report), together, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_two_devices_equal_one(single, dataset, prior, two_seeds_on_one_device):
    mesh = mesh_of(2)
    program = across_seeds(single, mesh)
    apart = jax.jit(program.round)(start(program, mesh, [3, 4]), dataset, prior, FULL)
    assert {shard.device for shard in apart[1].returns.addressable_shards} == set(mesh.devices.flat)
    assert_close(apart, two_seeds_on_one_device, rtol=2e-4, atol=2e-5)


def test_nothing_is_compiled_after_the_first_round_whatever_the_plan(single, dataset, prior):
    mesh = mesh_of(2)
    program = across_seeds(single, mesh)
    state = start(program, mesh, [0, 1])
    shared = NamedSharding(mesh, PartitionSpec())
    data, placed = jax.device_put((dataset, prior), shared)
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
    state, _ = round_(state, data, placed, plans[0])
    compiled = []

    def listen(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for each in plans:
            before = state
            state, _ = round_(state, data, placed, each)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))  # donated
        assert compiled == []
        jax.jit(lambda x: x * 3.0 + 17.0)(jnp.ones(3))
        assert len(compiled) > 0  # the listener hears
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_without_augmentation_a_round_is_the_learner_on_windows_of_the_dataset(single, learner, dataset, prior):
    state = jax.jit(single.init)(jax.random.key(5))
    after, report = jax.jit(single.round)(again(state), dataset, prior, plan(num_updates=3))
    _, _, key_train = jax.random.split(state.key, 3)
    expected, losses = state.learner, []
    for step in range(3):
        key_real, _, key_update = jax.random.split(jax.random.fold_in(jax.random.clone(key_train), step), 3)
        batch = sample_windows(dataset, key_real, CONFIG.batch_size, CONFIG.horizon)
        expected, metrics = jax.jit(learner.update)(expected, batch, uniform_weights(CONFIG.batch_size), key_update)
        losses.append(float(metrics["critic_loss"]))
    assert_close(after.learner, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(report.metrics["critic_loss"], np.mean(losses), rtol=1e-4)
    assert_close(after.synthetic, state.synthetic)
    np.testing.assert_array_equal(report.returns, 0.0)  # nobody asked for an evaluation


def test_key_of_the_evaluation_is_no_seeds_own_and_none_of_its_splits():
    of_seed_0 = [jax.random.split(jax.random.key(0), num) for num in (2, 3, 1000)] + [jax.random.key(0)[None]]
    data = jnp.concatenate([jax.random.key_data(keys) for keys in of_seed_0])
    assert not (data == jax.random.key_data(evaluation_key())[None]).all(axis=1).any()


def test_evaluation_is_noise_free_and_starts_alike_in_every_round(single, dataset, prior):
    run = jax.jit(single.round)
    state = jax.jit(single.init)(jax.random.key(5))
    state, first = run(state, dataset, prior, plan(evaluate=True))
    _, second = run(state, dataset, prior, plan(evaluate=True))
    np.testing.assert_array_equal(first.returns, second.returns)
    assert np.ptp(first.returns) > 0


def test_synthetic_trajectories_stay_inside_the_data_and_guidance_makes_them_likelier(single, learner, dataset, prior):
    run = jax.jit(single.round)
    state = jax.jit(single.init)(jax.random.key(5))
    likelihood = {}
    for guidance in (0.0, 0.2):
        after, _ = run(again(state), dataset, prior, plan(generate=True, guidance=guidance))
        for name in ("state", "obs", "action", "reward", "terminal"):
            made, real = after.synthetic[name], dataset.steps[name]
            assert made.min() >= real.min() and made.max() <= real.max()
        likelihood[guidance] = float(action_log_likelihood(learner, state.learner, after.synthetic).mean())
        _, report = run(after, dataset, prior, plan(mix_ratio=0.5))
        np.testing.assert_allclose(report.metrics["synthetic_log_likelihood"], likelihood[guidance], rtol=1e-4)
    assert likelihood[0.2] > likelihood[0.0] + 0.1, likelihood


def test_simulated_trajectories_are_the_policy_s_from_recorded_states(learner, dataset, prior):
    """Step by step what the environment makes of the policy's actions."""
    state = learner.init(jax.random.key(5))
    augmentation = oracle(DRIFT, learner, CONFIG.horizon)

    @jax.jit
    def simulate(dataset, key):
        def chunk(key, num):
            return augmentation.sample(state, dataset, (), jnp.float32(0.0), key, num)

        return sample_in_chunks(chunk, key, 24, 10)

    made = simulate(dataset, jax.random.key(6))
    assert made.reward.shape == (24, CONFIG.horizon)
    starts = {tuple(row) for row in np.asarray(dataset.steps.state)}
    assert {tuple(row) for row in np.asarray(made.state[:, 0])} <= starts
    np.testing.assert_allclose(made.action, unroll(learner, state, made.obs), atol=1e-6)
    np.testing.assert_allclose(made.state[:, 1:], made.state[:, :-1] + 0.1 * made.action[:, :-1, :, 0], atol=1e-6)
    np.testing.assert_allclose(made.reward, made.action.sum(axis=(2, 3)), atol=1e-6)


def test_the_guide_points_from_the_decoded_actions_to_the_policy(learner, dataset, prior):
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


def kinds(augmentation, **settings):
    """The schedule in letters: evaluate, generate (a reference), updates on recorded or Mixed batches."""
    letters = []
    for scheduled in make_schedule(dataclasses.replace(CONFIG, num_rounds=3, **settings), augmentation):
        p = scheduled.plan
        letter = "e" if scheduled.kind == "evaluate" else ""
        letter += ("r" if p.keep_reference else "g") if p.generate else ""
        letter += f"{float(p.guidance):.1f}" if p.generate else ""
        letter += ("M" if p.mix_ratio else "u") if p.num_updates else ""
        letters.append((scheduled.number, letter))
    return letters


def test_the_schedule_is_algorithm_2_for_each_kind_of_augmentation(model, learner):
    coda = guided(model, learner, 0.6)
    start = [(0, "e"), (0, "r0.0"), (0, "g0.6")]
    assert kinds(coda) == [*start, (1, "M"), (2, "g0.6M"), (3, "g0.6M")]
    assert kinds(coda, burn_in=1) == [*start, (1, "u"), (2, "g0.6M"), (3, "g0.6M")]
    assert kinds(None) == [(0, "e"), (1, "u"), (2, "u"), (3, "u")]
    assert kinds(unconditional(model)) == [(0, "e"), (0, "r0.0"), (1, "M"), (2, "M"), (3, "M")]
    simulated = [(0, "e"), (0, "r0.0"), (1, "M"), (2, "g0.0M"), (3, "g0.0M")]
    assert kinds(oracle(DRIFT, learner, CONFIG.horizon)) == simulated
    assert kinds(coda, evaluation_episodes=0, reference_trajectories=0)[0] == (0, "g0.6")


def test_run_is_the_rounds_of_the_schedule_one_after_the_other(learner, model, dataset, prior):
    config = dataclasses.replace(CONFIG, num_rounds=2, epochs_per_round=1, updates_per_epoch=2)
    trainer = make_trainer(DRIFT, learner, guided(model, learner, 0.6), config)
    state = jax.jit(trainer.init)(jax.random.key(5))
    round_, returns = jax.jit(trainer.round), []
    iterated = again(state)
    for scheduled in trainer.schedule:
        iterated, report = round_(iterated, dataset, prior, scheduled.plan)
        returns.append(report.returns)
    at_once, reports = jax.jit(trainer.run)(state, dataset, prior)
    assert_close(at_once, iterated, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(reports.returns, jnp.stack(returns), rtol=1e-3, atol=1e-4)
    assert np.any(at_once.reference.action != at_once.synthetic.action)


def test_without_reuse_a_round_takes_every_synthetic_trajectory_once(learner, dataset):
    """The augmentation numbers its trajectories by their reward; the learner adds up what it is given."""

    def sample(state, dataset, prior, guidance, key, num):
        del state, prior, guidance
        windows = sample_windows(dataset, key, num, CONFIG.horizon)
        return windows.replace(reward=jnp.broadcast_to(2.0 ** jnp.arange(num)[:, None], windows.reward.shape))

    def update(state, trajectory, weights, key):
        del weights, key
        return state + trajectory.reward[:, 0].sum(), {"sum": state}

    summing = learner._replace(init=lambda key: jnp.zeros(()), update=update, act=lambda s, o, c: (o, c))
    config = dataclasses.replace(
        CONFIG, mix_ratio=1.0, num_trajectories=16, epochs_per_round=1, updates_per_epoch=2, num_rounds=1, reuse=False
    )
    trainer = make_trainer(DRIFT, summing, Augmentation(sample), config)
    state, _ = jax.jit(trainer.run)(trainer.init(jax.random.key(0)), dataset, ())
    assert state.learner == 2.0**16 - 1


def test_each_term_sees_the_rows_that_the_settings_name():
    split = dataclasses.replace(CONFIG, critic_rows="all", actor_rows="synthetic", cloning_rows="recorded")
    weights = row_weights(split, jnp.float32(0.25))  # 2 of 8 rows
    np.testing.assert_array_equal(weights.critic, np.ones(8))
    np.testing.assert_array_equal(weights.actor, [1, 1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(weights.cloning, [0, 0, 1, 1, 1, 1, 1, 1])
    for share in (0.0, 1.0):  # no row of one kind: all rows count
        weights = row_weights(split, jnp.float32(share))
        np.testing.assert_array_equal(weights.actor, np.ones(8))
        np.testing.assert_array_equal(weights.cloning, np.ones(8))


@pytest.mark.slow
def test_a_round_passes_the_weights_on(learner, model, dataset, prior):
    seen = []

    def update(state, trajectory, weights, key):
        seen.append(weights.cloning.shape)
        return learner.update(state, trajectory, weights, key)

    split = dataclasses.replace(CONFIG, cloning_rows="recorded")
    trainer = make_trainer(DRIFT, learner._replace(update=update), guided(model, learner, 0.6), split)
    state, _ = jax.jit(trainer.round)(trainer.init(jax.random.key(0)), dataset, prior, FULL)
    assert seen and set(seen) == {(CONFIG.batch_size,)}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.learner))


@pytest.mark.slow
def test_recorded_starts_hold_states_and_observations_of_recorded_windows(learner, model, dataset, prior):
    state = learner.init(jax.random.key(2))
    sample = jax.jit(
        lambda key: guided(model, learner, 0.6, recorded_steps=2).sample(
            state, dataset, prior, jnp.float32(0.6), key, 16
        )
    )
    windows = sample(jax.random.key(3))
    recorded = np.asarray(dataset.steps.state)
    successors = {tuple(np.round(np.concatenate(pair), 4)) for pair in itertools.pairwise(recorded)}
    held = np.round(np.asarray(windows.state[:, :2]).reshape(16, -1), 4)
    assert sum(tuple(row) in successors for row in held) >= 15  # the transform rounds
    both = guided(model, learner, 0.6, recorded_steps=2, recorded_actions=True)
    whole = both.sample(state, dataset, prior, jnp.float32(0.6), jax.random.key(3), 16)
    actions = {tuple(np.round(row, 4)) for row in np.asarray(dataset.steps.action).reshape(-1, SPEC.num_agents)}

    def num_recorded(trajectory, token):
        return sum(tuple(np.round(row, 4)) in actions for row in np.asarray(trajectory.action[:, token, :, 0]))

    assert num_recorded(whole, 0) >= 15
    assert num_recorded(whole, 1) < 8  # the last held step's action is guided
    assert num_recorded(windows, 0) < 8
    free = guided(model, learner, 0.6).sample(state, dataset, prior, jnp.float32(0.6), jax.random.key(4), 16)
    starts = {tuple(np.round(row, 4)) for row in recorded}
    assert sum(tuple(np.round(row, 4)) in starts for row in np.asarray(free.state[:, 0])) < 8


def test_nans_are_flagged_by_phase_and_seed(single, dataset, prior):
    mesh = mesh_of(1)
    program = across_seeds(single, mesh)
    run = jax.jit(program.round)
    state = start(program, mesh, [0, 1])
    broken_learner = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), state.learner.policy)
    _, report = run(again(state).replace(learner=state.learner.replace(policy=broken_learner)), dataset, prior, FULL)
    assert np.asarray(report.finite["update"]).tolist() == [True, False]
    assert np.asarray(report.finite["evaluate"]).tolist() == [True, False]
    broken_prior = prior.replace(denoiser=jax.tree.map(lambda leaf: leaf * jnp.nan, prior.denoiser))
    _, report = run(again(state), dataset, broken_prior, FULL)
    assert np.asarray(report.finite["generate"]).tolist() == [False, False]
    _, report = run(state, dataset, broken_prior, plan(num_updates=2, evaluate=True))  # the prior is not used
    assert all(np.all(flags) for flags in report.finite.values())


def test_the_whole_round_on_mjx_lowers_for_accelerators_without_host_callbacks():
    env = mamujoco.make("2halfcheetah")
    config = dataclasses.replace(CONFIG, horizon=20)
    learner = maddpg_bc(env.spec, LEARNER, raw_inputs(env.spec))
    model = make_model(env.spec, config.horizon, GENERATOR, SAMPLER)
    mesh = mesh_of(2)
    program = across_seeds(make_trainer(env, learner, guided(model, learner, 0.6), config), mesh)
    shapes = functools.partial(jax.tree.map, lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    dataset = make_dataset(noise_episodes(env.spec, 1, 40), config.horizon)
    prior = Prior(
        transform=transforms.fit(transforms.pack(dataset.steps)),
        denoiser=jax.eval_shape(model.generator.init, jax.random.key(0)).params,
    )
    state = jax.eval_shape(program.init, jax.vmap(jax.random.key)(np.arange(2)))
    exported = jax.export.export(jax.jit(program.round), platforms=("cuda", "tpu"))(
        *map(shapes, (state, dataset, prior, FULL))
    )
    assert set(exported.platforms) == {"cuda", "tpu"}
    assert exported.nr_devices == 2
    called = set(re.findall(r"custom_call @(\w+)", exported.mlir_module()))
    assert not any("callback" in name for name in called), called
