"""Rollouts in a world that is known to the last digit: a clock.

The clock starts at a random whole number below 1000, the same for state and observations; each step adds 1 to it and
rewards the sum of actions times the steps since the reset. It ends by itself at multiples of 7, and by time limit after
5 steps.
"""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx

from coda_jax.envs.base import Environment, EnvState
from coda_jax.envs.rollout import episode_returns, rollout, step_and_reset, where_done
from coda_jax.types import TaskSpec

PERIOD, LIMIT, N = 7, 5, 6
SPEC = TaskSpec(name="clock", num_agents=2, state_dim=1, obs_dim=1, action_dim=1, episode_length=LIMIT)


def show(clock, reward, time) -> EnvState:
    return EnvState(
        state=clock[None],
        obs=jnp.broadcast_to(clock, (2, 1)),
        reward=reward,
        terminal=(clock % PERIOD == 0) & (time > 0),
        truncated=time >= LIMIT,
        time=time,
        physics=mjx.make_data(mujoco.MjModel.from_xml_string("<mujoco/>")),
    )


def reset(key) -> EnvState:
    return show(jax.random.randint(key, (), 0, 1000).astype(jnp.float32), jnp.zeros(()), jnp.zeros((), jnp.int32))


def step(now: EnvState, action) -> EnvState:
    time = now.time + 1
    return show(now.state[0] + 1.0, jnp.sum(action) * time, time)


CLOCK = Environment(reset=reset, step=step, set_state=lambda state: show(state[0], 0.0, 0), spec=SPEC)


def remembering(obs, memory, key):
    """Acts with the number of steps that it remembers, from zero at the start of an episode."""
    return jnp.broadcast_to(memory[:, None, None] / 8.0, (*obs.shape[:2], 1)), memory + 1.0


def reading_the_clock(obs, memory, key):
    return (obs % 3.0) / 4.0, memory


@jax.jit
def record(key):
    return rollout(CLOCK, remembering, jnp.zeros(N), key, N, 40)


@pytest.fixture(scope="module")
def recorded():
    """40 steps of N clocks, as numpy arrays with the environments in front."""
    return jax.tree.map(lambda leaf: np.moveaxis(np.asarray(leaf), 1, 0), record(jax.random.key(0)))


def test_shapes(recorded):
    steps = recorded.steps
    assert steps.state.shape == (N, 40, 1)
    assert steps.obs.shape == (N, 40, 2, 1)
    assert steps.action.shape == (N, 40, 2, 1)
    assert steps.reward.shape == steps.terminal.shape == recorded.truncated.shape == (N, 40)


def test_each_episode_runs_from_its_start_to_its_end_and_not_further(recorded):
    clock, terminal, truncated = recorded.steps.state[..., 0], recorded.steps.terminal, recorded.truncated
    kinds = set()
    for n in range(N):
        start = 0
        for t in range(40):
            age = t - start + 1
            after = clock[n, t] + 1
            assert terminal[n, t] == (after % PERIOD == 0)
            assert truncated[n, t] == (age == LIMIT)
            assert recorded.steps.reward[n, t] == 2 * age * (age - 1) / 8.0  # the memory began at zero
            kinds.add((terminal[n, t], truncated[n, t]))
            if terminal[n, t] or truncated[n, t]:
                start = t + 1
            elif t < 39:
                assert clock[n, t + 1] == after
        # What the last step of an episode led to is nobody's first observation: every episode has a start of its own.
        ends = np.flatnonzero(terminal[n, :-1] + truncated[n, :-1])
        assert len(np.unique(clock[n, ends + 1])) == len(ends)
        assert not np.any(clock[n, ends + 1] == clock[n, ends] + 1)
    assert kinds == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_observations_are_those_that_were_acted_on(recorded):
    np.testing.assert_array_equal(recorded.steps.obs, recorded.steps.state[:, :, None].repeat(2, axis=2))


def test_environments_differ_and_the_same_key_repeats_them(recorded):
    assert len(np.unique(recorded.steps.state[:, 0])) == N
    again = record(jax.random.key(0)).steps.state
    np.testing.assert_array_equal(np.moveaxis(again, 1, 0), recorded.steps.state)
    assert not np.array_equal(record(jax.random.key(1)).steps.state, again)


def test_a_step_returns_both_where_it_led_and_where_to_go_on():
    clock = jnp.array([6.0, 11.0, 20.0])
    now = jax.jit(jax.vmap(show))(clock, jnp.zeros(3), jnp.array([0, 4, 1], jnp.int32))
    step_once = jax.jit(lambda now, action, key: step_and_reset(CLOCK, now, action, key))
    stepped, following = step_once(now, jnp.zeros((3, 2, 1)), jax.random.key(1))
    np.testing.assert_array_equal(stepped.state[:, 0], clock + 1)
    np.testing.assert_array_equal(stepped.terminal, [True, False, True])
    np.testing.assert_array_equal(stepped.truncated, [False, True, False])
    np.testing.assert_array_equal(following.time, [0, 0, 0])
    assert not np.any(np.asarray(following.terminal | following.truncated))
    assert not np.any(np.asarray(following.state == stepped.state))


def test_where_done_selects_whole_environments():
    done = jnp.array([True, False])
    a = {"x": jnp.ones((2, 3)), "n": jnp.ones(2, jnp.int32)}
    b = {"x": jnp.zeros((2, 3)), "n": jnp.zeros(2, jnp.int32)}
    chosen = where_done(done, a, b)
    np.testing.assert_array_equal(chosen["x"], [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(chosen["n"], [1, 0])
    assert where_done(done, (), ()) == ()


@pytest.mark.parametrize("act", [remembering, reading_the_clock])
def test_episode_returns_count_the_first_episode_only(act, recorded):
    returns = jax.jit(lambda key: episode_returns(CLOCK, act, jnp.zeros(N), key, N))(jax.random.key(0))
    # The starts are `rollout`'s of the same key, and are all that a policy without noise needs.
    first = recorded.steps.state[:, 0, 0]
    expected = []
    for clock in first:
        total = 0.0
        for age in range(1, LIMIT + 1):
            action = (age - 1) / 8.0 if act is remembering else (clock % 3.0) / 4.0
            total += 2 * action * age
            clock += 1
            if clock % PERIOD == 0:
                break
        expected.append(total)
    assert len(set(expected)) > 2
    np.testing.assert_allclose(returns, expected, rtol=1e-6)
