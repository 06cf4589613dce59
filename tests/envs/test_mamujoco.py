"""MJX against gymnasium-robotics' MaMuJoCo, which runs MuJoCo in C in double precision.

The robot is chaotic: a hard landing can amplify the rounding of single precision by 10^4 within one step. So MJX is put
back where C is before every step or runs free for a few steps only, and the same program in double precision shows that
nothing but rounding parts the two. All tests share two compiled programs: a step of 20 environments in either precision.
"""

import contextlib
import logging
from collections.abc import Callable

import jax
import jax.export
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
import scipy.stats
from gymnasium_robotics import mamujoco_v1

from coda_jax.envs.mamujoco import HALF_CHEETAH, Environment, EnvState, load_model, make
from experiments.conformance import Reference, at, draw_starts, run, sinusoids

NUM_STARTS, NUM_STEPS = 20, 20


@pytest.fixture(scope="module")
def env() -> Environment:
    return make("2halfcheetah")


@pytest.fixture(scope="module")
def step(env) -> Callable[[EnvState, jax.Array], EnvState]:
    return jax.jit(jax.vmap(env.step))


@pytest.fixture(scope="module")
def fresh(env) -> EnvState:
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
def control() -> np.ndarray:
    return sinusoids(np.random.default_rng(1), NUM_STEPS, NUM_STARTS, size=6)


@pytest.fixture(scope="module")
def reference(simulator, control) -> Reference:
    return run(simulator, *draw_starts(simulator, np.random.default_rng(0), NUM_STARTS), control)


def shared_out(control: np.ndarray) -> np.ndarray:
    """Torques `[..., 6]` as actions `[..., A, U]`: two agents own three actuators each, in order."""
    return control.reshape(*control.shape[:-1], 2, 3)


def resynchronised(step, now: EnvState, reference: Reference, control: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors of state and reward `[T, N]` where every step begins where C is."""
    truth = reference.state(1)
    state_error, reward_error = [], []
    for t, action in enumerate(shared_out(control)):
        after = step(at(now, reference, t), action)
        state_error.append(np.abs(after.state - truth[t + 1]).max(axis=-1))
        reward_error.append(np.abs(after.reward - reference.reward[t]))
    return np.stack(state_error), np.stack(reward_error)


def free_running(step, now: EnvState, reference: Reference, control: np.ndarray) -> np.ndarray:
    """Errors of the state `[T, N]` where only the first step begins where C is."""
    truth = reference.state(1)
    now, error = at(now, reference, 0), []
    for t, action in enumerate(shared_out(control)):
        now = step(now, action)
        error.append(np.abs(now.state - truth[t + 1]).max(axis=-1))
    return np.stack(error)


def test_sizes(env):
    spec = env.spec
    assert (spec.name, spec.episode_length) == ("2halfcheetah", 1000)
    assert (spec.num_agents, spec.state_dim, spec.obs_dim, spec.action_dim) == (2, 17, 12, 3)


def test_an_unknown_task_is_a_key_error():
    with pytest.raises(KeyError):
        make("3halfcheetah")


def test_the_model_is_gymnasiums_and_loads_in_silence(simulator, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    ours = load_model(HALF_CHEETAH)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    for name in ("body_mass", "body_inertia", "dof_armature", "dof_damping", "jnt_stiffness", "geom_friction"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(simulator.model, name))
    assert ours.stat.meaninertia == simulator.model.stat.meaninertia
    assert (ours.opt.timestep, HALF_CHEETAH.frame_skip) == (simulator.model.opt.timestep, simulator.frame_skip)


def test_the_starts_cover_what_an_episode_meets(reference):
    states = reference.state(1)
    assert np.isfinite(states).all()
    assert (np.abs(states[0, :, 1]) > 2.0).sum() >= 4  # upside down
    assert (reference.qpos[0, :, 0] > 100.0).sum() >= 4  # late in an episode
    assert (states[..., 8].max(axis=0) > 4.0).sum() >= 5  # m/s forwards
    assert (np.abs(states[..., 11:]).max(axis=(0, 2)) > 10.0).sum() >= 15  # rad/s in some joint


def test_every_step_agrees_with_c(step, fresh, reference, control):
    state_error, reward_error = resynchronised(step, fresh, reference, control)
    print(f"re-synchronised: state {state_error.max():.1e}, reward {reward_error.max():.1e}")
    assert state_error.max() < 1e-3
    assert reward_error.max() < 1e-3


def test_free_runs_agree_for_five_steps(step, fresh, reference, simulator, control):
    error = free_running(step, fresh, reference, control)
    rounded = run(simulator, reference.qpos[0].astype(np.float32), reference.qvel[0].astype(np.float32), control)
    sensitivity = np.abs(rounded.state(1) - reference.state(1)).max(axis=-1)[1:]
    for t in (1, 5, 10, 20):
        ours, c = (f"{np.median(x[t - 1]):.1e}, {x[t - 1].max():.1e}" for x in (error, sensitivity))
        print(f"{t} free steps, median and largest error: MJX {ours}; C from a start rounded once {c}")
    assert error[:5].max() < 2e-3


def test_in_double_precision_nothing_is_left_but_the_solvers_tolerance(reference, control):
    with jax.enable_x64(True):
        env = make("2halfcheetah")
        step = jax.jit(jax.vmap(env.step))
        now = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), NUM_STARTS))
        state_error, reward_error = resynchronised(step, now, reference, control)
        free = free_running(step, now, reference, control)
    print(f"double: re-synchronised {state_error.max():.1e}, {reward_error.max():.1e}; free {free.max(axis=1)}")
    assert state_error.max() < 1e-6
