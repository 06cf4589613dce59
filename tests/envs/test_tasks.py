"""Every task in MJX against gymnasium in C: state, reward and end of a step, and the reset distribution.

As in `test_mamujoco`, MJX is set to the state of C before every step. `test_factorization` compares the index tables of
observations with gymnasium-robotics; some observations are compared here. All tests of a task share one compiled step.
"""

import functools

import jax
import jax.numpy as jnp
import mujoco as c_mujoco
import numpy as np
import pytest
import scipy.stats
from mujoco import mjx

from coda_jax.envs.factorization import factorize
from coda_jax.envs.mamujoco import build, make
from coda_jax.envs.physics import advance, load_model
from coda_jax.envs.tasks import TASKS
from experiments.conformance import NUM_STARTS, NUM_STEPS, as_actions, at, compare, open_simulator, trajectories
from tests.envs.test_factorization import MAMUJOCO, mamujoco

TASKS_TO_STEP = [task for task in MAMUJOCO if task not in ("2halfcheetah", "6halfcheetah")] + ["2reacher-first"]


@functools.cache
def reference(task: str):
    return trajectories(open_simulator(task), np.random.default_rng(1), NUM_STEPS, NUM_STARTS, TASKS[task][0])


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS_TO_STEP)
def test_every_step_agrees_with_c(task: str):
    result = compare(make(task), TASKS[task][0], reference(task))
    print(
        f"{task}: motion {np.quantile(result.motion, 0.99):.1e}, {result.motion.max():.1e}; "
        f"forces {np.quantile(result.forces, 0.99):.1e}, {result.forces.max():.1e}; "
        f"reward {np.quantile(result.reward, 0.99):.1e}, {result.reward.max():.1e}; {result.terminal.sum()} ends differ"
    )
    assert np.quantile(result.motion, 0.99) < 1e-3
    assert np.quantile(result.reward, 0.99) < 1e-3
    assert not result.terminal.any()


@pytest.mark.parametrize("task", MAMUJOCO)
def test_sizes(task: str):
    spec, theirs = make(task).spec, mamujoco(task, 1)
    spaces = [(theirs.observation_space(agent), theirs.action_space(agent)) for agent in theirs.possible_agents]
    assert (spec.name, spec.num_agents, spec.state_dim) == (task, len(spaces), len(theirs.state()))
    assert spec.obs_dim == max(obs.shape[0] for obs, _ in spaces)
    assert spec.action_dim == max(act.shape[0] for _, act in spaces)
    assert spec.episode_length == theirs.single_agent_env.get_wrapper_attr("_max_episode_steps")


def draws(task: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """States after resets in MJX and in C."""
    env, simulator = make(task), open_simulator(task)
    ours = jax.jit(jax.vmap(lambda key: env.reset(key).state))(jax.random.split(jax.random.key(3), count))
    return np.asarray(ours, np.float64), np.stack([simulator.reset(seed=seed)[0] for seed in range(count)])


@pytest.mark.parametrize(
    "task",
    [pytest.param(task, marks=() if task == "3hopper" else pytest.mark.slow) for task in MAMUJOCO if task[0] != "6"],
)
def test_reset_distributions_equal_gymnasium(task: str):
    ours, theirs = draws(task, 1000)
    np.testing.assert_array_equal(np.ptp(ours, axis=0) > 1e-4, np.ptp(theirs, axis=0) > 1e-4)
    for mine, other in zip(ours.T, theirs.T, strict=True):
        if np.ptp(other) > 1e-4:
            assert scipy.stats.ks_2samp(mine, other).pvalue > 1e-4
        else:
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", ["4ant", "3hopper", "2walker"])
def test_some_trajectories_end_and_others_do_not(task: str):
    assert 20 < reference(task).terminated.sum() < NUM_STARTS * NUM_STEPS - 20


@pytest.mark.slow
@pytest.mark.parametrize("task", ["4ant", "3hopper"])
def test_steps_from_set_state_agree_with_c(task: str):
    robot, graph = TASKS[task]
    model, env, c = load_model(robot), make(task), reference(task)
    split = factorize(model, graph, 1, robot.categories)
    actions = jnp.asarray(as_actions(model, split.action_index, c.control))
    set_state, step = jax.jit(jax.vmap(env.set_state)), jax.jit(jax.vmap(env.step))
    errors = []
    for t in range(1, NUM_STEPS):
        state = jnp.asarray(c.observed[t - 1], jnp.float32)
        start = set_state(state)
        np.testing.assert_array_equal(start.state, state)
        expected_obs = jnp.take(state, split.obs_index, axis=1, mode="fill", fill_value=0.0)
        np.testing.assert_array_equal(start.obs, expected_obs)
        errors.append(np.abs(np.asarray(step(start, actions[t]).state) - c.observed[t]).max(axis=1))
    # A clipped velocity is not determined by the state.
    is_determined = (np.abs(c.observed[:-1]) < 10.0).all(axis=-1) | (task == "4ant")
    assert is_determined.sum() > 200
    assert np.quantile(np.stack(errors)[is_determined], 0.99) < 1e-3


@pytest.mark.slow
def test_set_state_keeps_the_forces_of_the_state():
    env = make("4ant-v5")
    state = jax.random.normal(jax.random.key(0), (105,)).at[1:5].set(jnp.array([1.0, 0.0, 0.0, 0.0]))
    state_set = env.set_state(state)
    np.testing.assert_array_equal(state_set.state, state)
    np.testing.assert_array_equal(state_set.physics.qpos, jnp.concatenate([jnp.zeros(2), state[:13]]))
    np.testing.assert_array_equal(state_set.physics.qvel, state[13:27])


@pytest.mark.slow
def test_set_state_of_a_reacher_inverts_sines_and_cosines():
    env = make("2reacher")
    start = env.reset(jax.random.key(0))
    state_set = env.set_state(start.state)
    np.testing.assert_allclose(state_set.physics.qpos, start.physics.qpos, rtol=0, atol=1e-6)
    np.testing.assert_allclose(state_set.obs, start.obs, rtol=0, atol=1e-6)


def test_a_single_agent_observes_the_state_and_moves_all_joints():
    env = make("3hopper", obsk=None)
    spec = env.spec
    assert (spec.num_agents, spec.obs_dim, spec.action_dim, spec.state_dim) == (1, 11, 3, 11)
    start = env.reset(jax.random.key(0))
    np.testing.assert_array_equal(start.obs[0], start.state)


@pytest.mark.slow
def test_idle_actions_have_no_effect_and_no_cost():
    robot, hopper = TASKS["3hopper"]
    env = build("hopper", robot, hopper._replace(partition=(("foot_joint", "leg_joint"), ("thigh_joint",))))
    start = env.reset(jax.random.key(0))
    step = jax.jit(env.step)
    acted, other = (step(start, jnp.array([[0.3, -0.2], [0.5, idle]])) for idle in (0.0, 0.9))
    np.testing.assert_array_equal(acted.state, other.state)
    assert acted.reward == other.reward
    still = step(start, jnp.array([[0.3, -0.2], [0.4, 0.0]]))
    assert not np.array_equal(acted.state, still.state)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["3hopper", "4ant"])
def test_physics_steps_agree_with_c_in_double_precision(task: str):
    """Contacts, joint limits, the solver and the Runge-Kutta step (also of a free joint), without exceptions."""
    robot = TASKS[task][0]
    model, c, simulator = load_model(robot), reference(task), open_simulator(task)
    names = ("qpos", "qvel", "qacc_warmstart")
    before = {name: getattr(c, name)[:-1].reshape(NUM_STEPS * NUM_STARTS, -1) for name in names}
    before["ctrl"] = c.control.reshape(NUM_STEPS * NUM_STARTS, -1).astype(float)
    after = {"qpos": np.zeros_like(before["qpos"]), "qvel": np.zeros_like(before["qvel"])}
    for n in range(NUM_STEPS * NUM_STARTS):
        c_mujoco.mj_resetData(simulator.model, simulator.data)
        for name, values in before.items():
            getattr(simulator.data, name)[:] = values[n]
        c_mujoco.mj_step(simulator.model, simulator.data)
        for name, values in after.items():
            values[n] = getattr(simulator.data, name)
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        mjx_model, data = mjx.put_model(model), mjx.make_data(model)
        step = jax.jit(jax.vmap(lambda change: advance(model, mjx_model, data.replace(**change))))
        stepped = step(jax.tree.map(jnp.asarray, before))
    for name, values in after.items():
        np.testing.assert_allclose(getattr(stepped, name), values, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["4ant"])
def test_ant_reward_uses_the_lagged_torso_frame(task: str):
    """The frame of the torso, which the reward uses, lags behind qpos, and is stored near the origin."""
    robot = TASKS[task][0]
    c, env = reference(task), make(task)
    now = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), NUM_STARTS))
    model = load_model(robot)
    split = factorize(model, TASKS[task][1], 1, robot.categories)
    step = jax.jit(jax.vmap(env.step))
    after = at(now, c, 0, robot.place_dims)
    for t in range(3):  # without resetting to C: the frame is carried along
        after = step(after, jnp.asarray(as_actions(model, split.action_index, c.control[t])))
        near = np.abs(np.asarray(after.state) - c.observed[t]).max(axis=1) < 1e-3
        assert near.sum() > 10
        np.testing.assert_allclose(after.reward[near], c.reward[t][near], rtol=0, atol=1e-3)
    lag = c.qpos[1:, :, 0] - c.xpos[1:, :, 1, 0]
    assert np.abs(lag).max() > 1e-3  # qpos itself would give another reward
    assert np.abs(np.asarray(after.physics.xpos)[:, 1, 0]).max() < 1.0 < np.abs(c.qpos[3, :, 0]).max()
