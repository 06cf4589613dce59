"""Multi-agent MuJoCo in MJX: a robot whose joints are shared out among agents, as pure functions.

`make(name)` gives an `Environment`, whose functions act on a single environment; `jax.vmap` batches them. The
state and reward follow gymnasium's MuJoCo tasks and the observations gymnasium-robotics' `mamujoco_v1`, of which the
tests are the truth. Nothing resets by itself: `rollout` decides what follows the end of an episode, so the last
observation of an episode is never lost.
"""

import contextlib
import dataclasses
import importlib.resources
import io
import warnings
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import mujoco
from jaxtyping import Array, Bool, Float, Int

from coda_jax.envs.factorization import Factorization, JointGraph, factorize
from coda_jax.types import PRNGKey, TaskSpec

with contextlib.redirect_stdout(io.StringIO()):  # mjx prints that its optional warp backend is missing
    from mujoco import mjx


@chex.dataclass(frozen=True)
class EnvState:
    """Everything about one environment after a reset or a step.

    state:     `[*batch, S]` global state: joint positions and velocities, in m, rad, m/s and rad/s.
    obs:       `[*batch, A, O]` local observations.
    reward:    `[*batch]` team reward of the step that led here, 0 after a reset.
    terminal:  `[*batch]` whether the task truly ended.
    truncated: `[*batch]` whether the time limit was reached.
    time:      `[*batch]` steps since the reset.
    physics:   MJX data.
    """

    state: Float[Array, "*batch S"]
    obs: Float[Array, "*batch A O"]
    reward: Float[Array, "*batch"]
    terminal: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    time: Int[Array, "*batch"]
    physics: mjx.Data


class Environment(NamedTuple):
    """A task: three pure functions, and its sizes."""

    reset: Callable[[PRNGKey], EnvState]
    """Draws a start; the key is consumed."""
    step: Callable[[EnvState, Float[Array, "A U"]], EnvState]
    """Advances by one control step; actions are clipped to [-1, 1] by the actuators, not in the control cost."""
    place: Callable[[Float[Array, "S"]], EnvState]
    """Puts the robot into a global state, at the origin and at time 0: a step from a recorded or generated state."""
    spec: TaskSpec


@dataclasses.dataclass(frozen=True)
class Robot:
    """A MuJoCo robot and its task, before it is split among agents."""

    xml: str
    """File name among gymnasium's MuJoCo assets."""
    frame_skip: int
    """Physics steps a control step."""
    num_hidden_qpos: int
    """Leading entries of qpos that the state leaves out (the robot's place in the world)."""
    reset_noise: float
    """Half width of the uniform noise on positions, and standard deviation of the normal noise on velocities."""
    control_cost: float
    """Weight of the squared actions in the reward."""
    solver_iterations: int
    """Largest number of Newton iterations a physics step."""
    line_search_iterations: int
    """Line search iterations a Newton iteration."""
    episode_length: int = 1000
    """Time limit, in control steps."""


HALF_CHEETAH = Robot(
    xml="half_cheetah.xml",
    frame_skip=5,
    num_hidden_qpos=1,
    reset_noise=0.1,
    control_cost=0.1,
    # As exact as MuJoCo's 100 / 50 and twice as fast or more (`experiments/conformance.py`). The solver stops by
    # itself, so iterations cost only where a hard landing needs them; a line search in single precision never does.
    solver_iterations=20,
    line_search_iterations=4,
)

_HALF_CHEETAH_EDGES = (
    ("bfoot", "bshin"),
    ("bshin", "bthigh"),
    ("bthigh", "fthigh"),
    ("fthigh", "fshin"),
    ("fshin", "ffoot"),
)

TASKS: dict[str, tuple[Robot, JointGraph]] = {
    "2halfcheetah": (
        HALF_CHEETAH,
        JointGraph(
            edges=_HALF_CHEETAH_EDGES,
            partition=(("bthigh", "bshin", "bfoot"), ("fthigh", "fshin", "ffoot")),
            root=("rootx", "rootz", "rooty"),
        ),
    ),
}


def load_model(robot: Robot) -> mujoco.MjModel:
    """The robot's MuJoCo model, with the solver options that MJX runs it with."""
    folder = importlib.resources.files("gymnasium.envs.mujoco") / "assets"
    with importlib.resources.as_file(folder / robot.xml) as path, warnings.catch_warnings():
        # By way of `MjSpec` it is a Python warning; `MjModel.from_xml_path` would write it to stderr and a log file.
        warnings.filterwarnings("ignore", "compiler attribute 'settotalmass' is deprecated", UserWarning)
        model = mujoco.MjSpec.from_file(str(path)).compile()
    model.opt.iterations = robot.solver_iterations
    model.opt.ls_iterations = robot.line_search_iterations
    return model


def make(name: str, obsk: int = 1) -> Environment:
    """Builds a MaMuJoCo task.

    Args:
        name: a task of `TASKS`, such as `2halfcheetah`.
        obsk: graph distance up to which an agent sees joints besides its own.

    Raises:
        KeyError: there is no task of that name.
    """
    return build(name, *TASKS[name], obsk)


def build(name: str, robot: Robot, graph: JointGraph, obsk: int = 1) -> Environment:
    """Builds a task from a robot and its split; `make` for those that have no name in `TASKS`."""
    model = load_model(robot)
    split = factorize(model, graph, obsk, robot.num_hidden_qpos)
    num_agents, obs_dim = split.obs_index.shape
    spec = TaskSpec(
        name=name,
        num_agents=num_agents,
        state_dim=model.nq - robot.num_hidden_qpos + model.nv,
        obs_dim=obs_dim,
        action_dim=split.action_index.shape[1],
        episode_length=robot.episode_length,
    )
    return Environment(*_simulation(robot, model, split), spec)


def _simulation(
    robot: Robot, model: mujoco.MjModel, split: Factorization
) -> tuple[
    Callable[[PRNGKey], EnvState],
    Callable[[EnvState, Float[Array, "A U"]], EnvState],
    Callable[[Float[Array, "S"]], EnvState],
]:
    mjx_model = mjx.put_model(model)
    template = mjx.make_data(model)
    qpos0 = jnp.asarray(model.qpos0, jnp.float32)
    dt = robot.frame_skip * model.opt.timestep

    def observe(physics: mjx.Data, reward: Array, time: Array) -> EnvState:
        state = jnp.concatenate([physics.qpos[robot.num_hidden_qpos :], physics.qvel])
        return EnvState(
            state=state,
            obs=jnp.take(state, split.obs_index, mode="fill", fill_value=0.0),
            reward=reward,
            terminal=jnp.zeros((), bool),
            truncated=time >= robot.episode_length,
            time=time,
            physics=physics,
        )

    def stand(qpos: Float[Array, "nq"], qvel: Float[Array, "nv"]) -> EnvState:
        # No `mjx.forward` here: a step begins with it, and a cheap reset keeps automatic resets cheap.
        return observe(template.replace(qpos=qpos, qvel=qvel), jnp.zeros(()), jnp.zeros((), jnp.int32))

    def reset(key: PRNGKey) -> EnvState:
        key_qpos, key_qvel = jax.random.split(key)
        qpos = qpos0 + jax.random.uniform(key_qpos, qpos0.shape, minval=-robot.reset_noise, maxval=robot.reset_noise)
        qvel = robot.reset_noise * jax.random.normal(key_qvel, (model.nv,))
        return stand(qpos, qvel)

    def place(state: Float[Array, "S"]) -> EnvState:
        visible = model.nq - robot.num_hidden_qpos
        return stand(jnp.concatenate([jnp.zeros(robot.num_hidden_qpos), state[:visible]]), state[visible:])

    def step(env: EnvState, action: Float[Array, "A U"]) -> EnvState:
        control = jnp.zeros((model.nu,)).at[split.action_index].set(action)

        def substep(physics: mjx.Data, _: None) -> tuple[mjx.Data, None]:
            return mjx.step(mjx_model, physics), None

        # The robot's place is hidden because it does not matter, except for precision: 400 m from the origin, single
        # precision blurs the contacts by 5e-3 a step. So every step begins at the origin.
        hidden = slice(0, robot.num_hidden_qpos)
        place = env.physics.qpos[hidden]
        physics = env.physics.replace(qpos=env.physics.qpos.at[hidden].set(0.0), ctrl=control)
        with jax.numpy_rank_promotion("allow"):  # inside mjx
            physics, _ = jax.lax.scan(substep, physics, length=robot.frame_skip)
        moved = physics.qpos[hidden]
        physics = physics.replace(qpos=physics.qpos.at[hidden].set(place + moved))
        velocity = moved[0] / dt
        reward = velocity - robot.control_cost * jnp.sum(jnp.square(action))
        return observe(physics, reward, env.time + 1)

    return reset, step, place
