"""MJX against gymnasium-robotics' MaMuJoCo, which runs MuJoCo in C in double precision.

The robot is chaotic, so MJX is put back where C is before every step, or runs free for a few steps only. All tests step
one batch of 32 environments, so that they share one compiled program.
"""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gymnasium_robotics import mamujoco_v1

from coda_jax.envs.mamujoco import TASKS, Environment, EnvState, build, make
from experiments.conformance import Reference, at, draw_starts, run, sinusoids

NUM_STARTS, NUM_STEPS = 32, 20
CHEETAH, GRAPH = TASKS["2halfcheetah"]


@pytest.fixture(scope="module")
def env() -> Environment:
    return make("2halfcheetah")


@pytest.fixture(scope="module")
def step(env):
    return jax.jit(jax.vmap(env.step))


@pytest.fixture(scope="module")
def fresh(env) -> EnvState:
    return jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), NUM_STARTS))


@pytest.fixture(scope="module")
def c():
    """MaMuJoCo in C; its observations are dicts of agents."""
    return mamujoco_v1.parallel_env("HalfCheetah", "2x3", agent_obsk=1)


@pytest.fixture(scope="module")
def simulator(c):
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


def test_sizes(env):
    spec = env.spec
    assert (spec.num_agents, spec.state_dim, spec.obs_dim, spec.action_dim) == (2, 17, 12, 3)
    assert (spec.name, spec.episode_length) == ("2halfcheetah", 1000)


def test_the_starts_cover_what_an_episode_meets(reference):
    states = reference.state(CHEETAH.num_hidden_qpos)
    assert np.isfinite(states).all()
    assert (np.abs(states[0, :, 1]) > 2.0).sum() >= 5  # flipped
    assert (states[..., 8].max(axis=0) > 4.0).sum() >= 8  # fast, in m/s
    assert (np.abs(states[..., 11:]).max(axis=(0, 2)) > 10.0).sum() >= 20  # joints, in rad/s


def test_every_step_agrees_with_c(step, fresh, reference, control):
    truth = reference.state(CHEETAH.num_hidden_qpos)
    state_error, reward_error = np.zeros((2, NUM_STEPS))
    for t, action in enumerate(shared_out(control)):
        now = step(at(fresh, reference, t), action)
        state_error[t] = np.abs(now.state - truth[t + 1]).max()
        reward_error[t] = np.abs(now.reward - reference.reward[t]).max()
    print(f"re-synchronised: state {state_error.max():.1e}, reward {reward_error.max():.1e}")
    assert state_error.max() < 1e-3
    assert reward_error.max() < 1e-3


def test_free_runs_agree_for_five_steps_and_part_like_c_from_itself(step, fresh, reference, simulator, control):
    truth = reference.state(CHEETAH.num_hidden_qpos)[1:]
    now, states = at(fresh, reference, 0), []
    for action in shared_out(control):
        now = step(now, action)
        states.append(now.state)
    error = np.abs(np.stack(states) - truth).max(axis=2)
    rounded = run(simulator, *(x[0].astype(np.float32) for x in (reference.qpos, reference.qvel)), control)
    sensitivity = np.abs(rounded.state(CHEETAH.num_hidden_qpos)[1:] - truth).max(axis=2)
    for t in (0, 4, 9, 19):
        spread = [f"{np.median(x[t]):.1e} / {x[t].max():.1e}" for x in (error, sensitivity)]
        print(f"free run, {t + 1} steps, median / largest: MJX {spread[0]}, C from a rounded start {spread[1]}")
    assert error[:5].max() < 2e-3
