"""Rollouts in an environment with exact known states: a clock.

The clock starts at a random whole number below 1000, the same for state and observations; each step adds 1 to it; the
reward is the sum of actions times the steps since the reset. Episodes terminate at multiples of 7 and are truncated
after 5 steps.
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


def clock_at(clock, reward, time) -> EnvState:
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
    return clock_at(jax.random.randint(key, (), 0, 1000).astype(jnp.float32), jnp.zeros(()), jnp.zeros((), jnp.int32))


def step(state: EnvState, action) -> EnvState:
    time = state.time + 1
    return clock_at(state.state[0] + 1.0, jnp.sum(action) * time, time)


CLOCK = Environment(reset=reset, step=step, set_state=lambda state: clock_at(state[0], 0.0, 0), spec=SPEC)


def counting_policy(obs, memory, key):
    """A policy whose actions are its step count, from zero at the start of an episode."""
    return jnp.broadcast_to(memory[:, None, None] / 8.0, (*obs.shape[:2], 1)), memory + 1.0


def clock_policy(obs, memory, key):
    return (obs % 3.0) / 4.0, memory


@jax.jit
def record(key):
    return rollout(CLOCK, counting_policy, jnp.zeros(N), key, N, 40)


@pytest.fixture(scope="module")
def recorded():
    """40 steps of N clocks, as numpy arrays with a leading axis of environments."""
    return jax.tree.map(lambda leaf: np.moveaxis(np.asarray(leaf), 1, 0), record(jax.random.key(0)))


def test_shapes(recorded):
    steps = recorded.steps
    assert steps.state.shape == (N, 40, 1)
    assert steps.obs.shape == (N, 40, 2, 1)
    assert steps.action.shape == (N, 40, 2, 1)
    assert steps.reward.shape == steps.terminal.shape == recorded.truncated.shape == (N, 40)


def test_episodes_end_exactly_at_terminals_and_time_limits(recorded):
    clock, terminal, truncated = recorded.steps.state[..., 0], recorded.steps.terminal, recorded.truncated
    kinds = set()
    for n in range(N):
        start = 0
        for t in range(40):
            age = t - start + 1
            after = clock[n, t] + 1
            assert terminal[n, t] == (after % PERIOD == 0)
            assert truncated[n, t] == (age == LIMIT)
            assert recorded.steps.reward[n, t] == 2 * age * (age - 1) / 8.0  # the memory starts at zero
            kinds.add((terminal[n, t], truncated[n, t]))
            if terminal[n, t] or truncated[n, t]:
                start = t + 1
            elif t < 39:
                assert clock[n, t + 1] == after
        # The state after the last step of an episode is not the first of the next: every episode has its own start.
        ends = np.flatnonzero(terminal[n, :-1] + truncated[n, :-1])
        assert len(np.unique(clock[n, ends + 1])) == len(ends)
        assert not np.any(clock[n, ends + 1] == clock[n, ends] + 1)
    assert kinds == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_recorded_observations_are_the_inputs_of_the_policy(recorded):
    np.testing.assert_array_equal(recorded.steps.obs, recorded.steps.state[:, :, None].repeat(2, axis=2))


def test_environments_differ_and_a_key_reproduces_them(recorded):
    assert len(np.unique(recorded.steps.state[:, 0])) == N
    again = record(jax.random.key(0)).steps.state
    np.testing.assert_array_equal(np.moveaxis(again, 1, 0), recorded.steps.state)
    assert not np.array_equal(record(jax.random.key(1)).steps.state, again)


def test_step_and_reset_returns_states_without_and_with_resets():
    clock = jnp.array([6.0, 11.0, 20.0])
    state = jax.jit(jax.vmap(clock_at))(clock, jnp.zeros(3), jnp.array([0, 4, 1], jnp.int32))
    step_once = jax.jit(lambda state, action, key: step_and_reset(CLOCK, state, action, key))
    stepped, state_after_reset = step_once(state, jnp.zeros((3, 2, 1)), jax.random.key(1))
    np.testing.assert_array_equal(stepped.state[:, 0], clock + 1)
    np.testing.assert_array_equal(stepped.terminal, [True, False, True])
    np.testing.assert_array_equal(stepped.truncated, [False, True, False])
    np.testing.assert_array_equal(state_after_reset.time, [0, 0, 0])
    assert not np.any(np.asarray(state_after_reset.terminal | state_after_reset.truncated))
    assert not np.any(np.asarray(state_after_reset.state == stepped.state))


def test_where_done_selects_whole_environments():
    done = jnp.array([True, False])
    a = {"x": jnp.ones((2, 3)), "n": jnp.ones(2, jnp.int32)}
    b = {"x": jnp.zeros((2, 3)), "n": jnp.zeros(2, jnp.int32)}
    chosen = where_done(done, a, b)
    np.testing.assert_array_equal(chosen["x"], [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(chosen["n"], [1, 0])
    assert where_done(done, (), ()) == ()


@pytest.mark.parametrize("act", [counting_policy, clock_policy])
def test_episode_returns_count_the_first_episode_only(act, recorded):
    returns = jax.jit(lambda key: episode_returns(CLOCK, act, jnp.zeros(N), key, N))(jax.random.key(0))
    # The starts are those of `rollout` with the same key; the policies are deterministic.
    first = recorded.steps.state[:, 0, 0]
    expected = []
    for clock in first:
        total = 0.0
        for age in range(1, LIMIT + 1):
            action = (age - 1) / 8.0 if act is counting_policy else (clock % 3.0) / 4.0
            total += 2 * action * age
            clock += 1
            if clock % PERIOD == 0:
                break
        expected.append(total)
    assert len(set(expected)) > 2
    np.testing.assert_allclose(returns, expected, rtol=1e-6)
