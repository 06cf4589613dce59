"""MJX against gymnasium-robotics' MaMuJoCo, which runs MuJoCo in C in double precision.

The robot is chaotic: a hard landing amplifies rounding by 10^5 within one control step, so one or two steps in a
thousand have errors above 1e-3 in single precision, whatever the solver options. Therefore MJX is set to the state of C
before every step, or runs freely for a few steps only, on trajectories without such a landing; on other trajectories,
the same program in double precision shows that rounding is the only difference. All tests share two compiled programs:
a step of 20 environments in either precision.
"""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gymnasium_robotics import mamujoco_v1

from coda_jax.envs.base import Environment, EnvState
from coda_jax.envs.mamujoco import make
from coda_jax.envs.physics import load_model
from coda_jax.envs.robots import HALF_CHEETAH
from experiments.conformance import Reference, at, run, trajectories

NUM_STARTS, NUM_STEPS = 20, 20


@pytest.fixture(scope="module")
def env() -> Environment:
    return make("2halfcheetah")


@pytest.fixture(scope="module")
def step(env):
    return jax.jit(jax.vmap(env.step))


@pytest.fixture(scope="module")
def starts(env) -> EnvState:
    return jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), NUM_STARTS))


@pytest.fixture(scope="module")
def c():
    """MaMuJoCo in C; actions and observations are dicts of agents."""
    return mamujoco_v1.parallel_env("HalfCheetah", "2x3", agent_obsk=1)


@pytest.fixture(scope="module")
def simulator(c):
    """The single robot inside it."""
    return c.single_agent_env.unwrapped


@pytest.fixture(scope="module")
def reference(simulator) -> Reference:
    return trajectories(simulator, np.random.default_rng(106), NUM_STEPS, NUM_STARTS)


def as_actions(control: np.ndarray) -> np.ndarray:
    """Torques `[..., 6]` as actions `[..., A, U]`: two agents own three actuators each, in order."""
    return control.reshape(*control.shape[:-1], 2, 3)


def distance(state: jax.Array, truth: np.ndarray) -> np.ndarray:
    """Largest difference in each environment."""
    return np.abs(np.asarray(state, np.float64) - truth).max(axis=-1)


def resynchronised(step, now: EnvState, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """Errors of state and reward `[T, N]`; every step starts from the state of C."""
    truth, state, reward = reference.state(1), [], []
    for t, action in enumerate(as_actions(reference.control)):
        after = step(at(now, reference, t), action)
        state.append(distance(after.state, truth[t + 1]))
        reward.append(np.abs(np.asarray(after.reward, np.float64) - reference.reward[t]))
    return np.stack(state), np.stack(reward)


def free_running(step, now: EnvState, reference: Reference) -> np.ndarray:
    """Errors of the state `[T, N]`; only the first step starts from the state of C."""
    truth, now, state = reference.state(1), at(now, reference, 0), []
    for t, action in enumerate(as_actions(reference.control)):
        now = step(now, action)
        state.append(distance(now.state, truth[t + 1]))
    return np.stack(state)


def test_sizes(env):
    spec = env.spec
    assert (spec.name, spec.episode_length) == ("2halfcheetah", 1000)
    assert (spec.num_agents, spec.state_dim, spec.obs_dim, spec.action_dim) == (2, 17, 12, 3)


def test_an_unknown_task_is_a_key_error():
    with pytest.raises(KeyError):
        make("3halfcheetah")


def test_the_model_equals_gymnasiums_and_loading_prints_nothing(simulator, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    ours, theirs = load_model(HALF_CHEETAH), simulator.model
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    for name in ("body_mass", "body_inertia", "dof_armature", "dof_damping", "jnt_stiffness", "geom_friction"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert ours.stat.meaninertia == theirs.stat.meaninertia
    assert (ours.opt.timestep, HALF_CHEETAH.frame_skip) == (theirs.opt.timestep, simulator.frame_skip)


def test_trajectories_cover_the_situations_of_an_episode(reference):
    states = reference.state(1)
    assert np.isfinite(states).all()
    assert (np.abs(states[0, :, 1]) > 2.0).sum() >= 4  # upside down
    assert (reference.qpos[0, :, 0] > 100.0).sum() >= 4  # late in an episode
    assert (states[..., 8].max(axis=0) > 4.0).sum() >= 5  # m/s forwards
    assert (np.abs(states[..., 11:]).max(axis=(0, 2)) > 10.0).sum() >= 15  # rad/s in some joint


def test_every_step_agrees_with_c(step, starts, reference):
    state, reward = resynchronised(step, starts, reference)
    print(f"re-synchronised: state {state.max():.1e}, reward {reward.max():.1e}")
    assert state.max() < 1e-3
    assert reward.max() < 1e-3


def test_free_runs_agree_with_c_for_five_steps(step, starts, reference, simulator):
    error = free_running(step, starts, reference)
    start = (reference.qpos[0].astype(np.float32), reference.qvel[0].astype(np.float32))
    sensitivity = distance(run(simulator, *start, reference.control).state(1), reference.state(1))[1:]
    for t in (1, 5, 10, 20):
        ours, c = (f"{np.median(x[t - 1]):.1e}, {x[t - 1].max():.1e}" for x in (error, sensitivity))
        print(f"free run of {t}, median and largest error: MJX {ours}; C from a start rounded once {c}")
    assert error[:5].max() < 2e-3


@pytest.mark.slow
def test_in_double_precision_hard_landings_agree_too(simulator):
    # One landing here takes more than four solver iterations.
    hard = trajectories(simulator, np.random.default_rng(7), NUM_STEPS, NUM_STARTS)
    with jax.enable_x64(True):
        env = make("2halfcheetah")
        step = jax.jit(jax.vmap(env.step))
        now = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), NUM_STARTS))
        state, reward = resynchronised(step, now, hard)
        free = free_running(step, now, hard)
    print(f"double: re-synchronised {state.max():.1e}, reward {reward.max():.1e}, free {free.max():.1e}")
    assert state.max() < 1e-6
    assert reward.max() < 1e-6
    assert free.max() < 1e-3


def test_steps_from_set_state_agree_with_c(env, step, reference):
    """From the state alone: the root position and the solver's last solution are unknown."""
    truth = reference.state(1)
    set_state = jax.jit(jax.vmap(env.set_state))
    state, reward = [], []
    for t, action in enumerate(as_actions(reference.control)):
        start = set_state(jnp.asarray(truth[t], jnp.float32))
        np.testing.assert_array_equal(start.state, truth[t].astype(np.float32))
        after = step(start, action)
        state.append(distance(after.state, truth[t + 1]))
        reward.append(np.abs(np.asarray(after.reward, np.float64) - reference.reward[t]))
    assert np.quantile(state, 0.99) < 1e-3
    assert np.quantile(reward, 0.99) < 1e-3


def test_the_first_step_after_a_reset_needs_no_forward_pass(step, starts, c, simulator):
    # gymnasium calls mj_forward at a reset, our reset does not.
    action = np.asarray(jax.random.uniform(jax.random.key(1), (NUM_STARTS, 2, 3), minval=-1.0))
    after = step(starts, action)
    for n in range(NUM_STARTS):
        c.reset(seed=0)
        simulator.set_state(
            np.asarray(starts.physics.qpos[n], np.float64), np.asarray(starts.physics.qvel[n], np.float64)
        )
        obs, reward, *_ = c.step(dict(zip(c.possible_agents, action[n], strict=True)))
        for agent, agent_obs in zip(c.possible_agents, after.obs[n], strict=True):
            np.testing.assert_allclose(agent_obs, obs[agent], rtol=0, atol=1e-4)
            np.testing.assert_allclose(after.reward[n], reward[agent], rtol=0, atol=1e-4)


def test_observations_are_entries_of_the_state(starts):
    state = np.asarray(starts.state)
    np.testing.assert_array_equal(state, np.concatenate([starts.physics.qpos[:, 1:], starts.physics.qvel], axis=1))
    np.testing.assert_array_equal(starts.obs[:, 0], state[:, [4, 13, 3, 12, 2, 11, 5, 0, 1, 8, 9, 10]])
    np.testing.assert_array_equal(starts.obs[:, 1], state[:, [7, 16, 6, 15, 5, 14, 2, 0, 1, 8, 9, 10]])


def test_reward_is_speed_minus_control_cost(step, starts, reference):
    now = at(starts, reference, 0)
    action = as_actions(reference.control[0])
    after = step(now, action)
    # From differences of x, where x is small enough for single precision.
    near = reference.qpos[0, :, 0] < 10.0
    speed = (np.asarray(after.physics.qpos[:, 0], np.float64) - np.asarray(now.physics.qpos[:, 0], np.float64)) / 0.05
    expected = speed - 0.1 * np.square(action).sum(axis=(1, 2))
    np.testing.assert_allclose(after.reward[near], expected[near], rtol=0, atol=5e-5)
    # The root position is carried along, although every step is computed at the origin.
    np.testing.assert_allclose(after.physics.qpos[:, 0], reference.qpos[1, :, 0], rtol=0, atol=1e-4)


def test_actuators_clip_actions_and_the_control_cost_does_not(step, starts, reference, simulator):
    start = (reference.qpos[0], reference.qvel[0])
    torque = 3.0 * reference.control[:1]
    truth = run(simulator, *start, torque)
    after = step(at(starts, reference, 0), as_actions(torque[0]))
    assert distance(after.state, truth.state(1)[1]).max() < 1e-3
    np.testing.assert_allclose(after.reward, truth.reward[0], rtol=0, atol=1e-3)
    clipped = step(at(starts, reference, 0), np.clip(as_actions(torque[0]), -1.0, 1.0))
    np.testing.assert_allclose(after.state, clipped.state, rtol=0, atol=1e-6)
    assert (np.asarray(after.reward) < np.asarray(clipped.reward) - 0.5).all()


def test_the_time_limit_truncates_and_does_not_terminate(step, starts, c):
    still = np.zeros((NUM_STARTS, 2, 3), np.float32)
    before = step(starts.replace(time=jnp.full(NUM_STARTS, 998, jnp.int32)), still)
    at_limit = step(before, still)
    assert not np.any(before.truncated) and not np.any(before.terminal)
    assert np.all(at_limit.truncated) and not np.any(at_limit.terminal)
    assert np.all(np.asarray(at_limit.time) == 1000)
    assert not np.any(starts.truncated) and not np.any(starts.terminal) and not np.any(np.asarray(starts.time))
    c.reset(seed=0)
    ends = [c.step(dict.fromkeys(c.possible_agents, still[0, 0]))[2:4] for _ in range(1000)]
    assert [all(cut.values()) for _, cut in ends] == [False] * 999 + [True]
    assert not any(any(end.values()) for end, _ in ends)


def test_reset_distribution(env):
    draw = jax.jit(jax.vmap(lambda key: (lambda now: (now.physics.qpos, now.physics.qvel))(env.reset(key))))
    qpos, qvel = (np.asarray(x) for x in draw(jax.random.split(jax.random.key(2), 4000)))
    for column in qpos.T:
        assert scipy.stats.kstest(column, scipy.stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3
    for column in qvel.T:
        assert scipy.stats.kstest(column, scipy.stats.norm(0.0, 0.1).cdf).pvalue > 1e-3
    correlation = np.corrcoef(np.concatenate([qpos, qvel], axis=1), rowvar=False) - np.eye(18)
    assert np.abs(correlation).max() < 5.0 / np.sqrt(4000)


def test_it_lowers_for_accelerators_without_host_callbacks(env, step, starts):
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), NUM_STARTS))
    action = jax.ShapeDtypeStruct((NUM_STARTS, 2, 3), jnp.float32)
    now = jax.eval_shape(lambda now: now, starts)
    for function, arguments in ((jax.jit(jax.vmap(env.reset)), (keys,)), (step, (now, action))):
        assert "callback" not in str(function.trace(*arguments).jaxpr)
        exported = jax.export.export(function, platforms=["cpu", "cuda", "tpu"])(*arguments)
        assert exported.platforms == ("cpu", "cuda", "tpu")
        assert not exported.ordered_effects and not exported.unordered_effects
