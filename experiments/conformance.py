"""Comparison of MJX with MuJoCo in C for each task: accuracy, and speed on this machine.

    python -m experiments.conformance                        # all tasks
    python -m experiments.conformance 4ant 3hopper --write   # two tasks, written to results/CONFORMANCE.md
    python -m experiments.conformance 4ant --options 100,50,0 20,4,10   # other solver options

C runs in double precision with the options of gymnasium's XML; MJX runs in single precision with the options of
`envs.robots`. The states come from trajectories of C that cover the situations of an episode: resets, gaits, flipped
and falling poses, fast motion far from the origin. MJX is set to the state of C before every step; an error is the
largest absolute difference after one control step. Inertia and forces in the state of some robots are compared
separately, relative to their magnitude where it exceeds 1. In a few steps in a thousand, a hard landing amplifies the
rounding errors of single precision beyond 1e-3, whatever the options; so the table has the 99 % quantile and the
largest error.
"""

import dataclasses
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import tyro
from jaxtyping import Bool, Float

from coda_jax.envs.base import Environment, EnvState
from coda_jax.envs.factorization import factorize
from coda_jax.envs.kinematics import ancestors
from coda_jax.envs.mamujoco import TASKS, build, load_model
from coda_jax.envs.physics import roots
from coda_jax.envs.robots import HALF_CHEETAH, Robot
from experiments.host.cache import enable_compilation_cache
from experiments.host.console import print_table
from experiments.host.errors import UserError, one_line_errors, parse_command
from experiments.host.files import write_atomically
from experiments.pipeline.settings import check_choice

GYMNASIUM = {
    "halfcheetah": "HalfCheetah-v5",
    "ant": "Ant-v4",
    "antd": "Ant-v4",
    "ant-v5": "Ant-v5",
    "antd-v5": "Ant-v5",
    "hopper": "Hopper-v5",
    "walker": "Walker2d-v5",
    "swimmer": "Swimmer-v5",
    "reacher": "Reacher-v5",
    "reacher-notip": "Reacher-v5",
    "reacher-first": "Reacher-v5",
    "humanoid": "Humanoid-v5",
    "humanoidstandup": "HumanoidStandup-v5",
}
"""gymnasium's environment for each robot, by the task's name without the number of agents. Robots of repeated parts are
in gymnasium-robotics (`dev` extra) instead."""

NUM_STARTS, NUM_STEPS = 20, 20
TABLE = Path("results/CONFORMANCE.md")
_MOTION = ("qpos", "qvel", "qvel_clipped", "cos", "sin", "to_target", "ten_J", "ten_length", "ten_velocity")


class Reference(NamedTuple):
    """Trajectories of MuJoCo in C: N starts, T control steps, in double precision."""

    qpos: Float[np.ndarray, "T+1 N Q"]
    qvel: Float[np.ndarray, "T+1 N V"]
    qacc_warmstart: Float[np.ndarray, "T+1 N V"]
    """The solver's initial guess: the accelerations of the previous physics step."""
    xpos: Float[np.ndarray, "T+1 N B 3"]
    """Frames of the bodies at the last evaluation of the forces."""
    xipos: Float[np.ndarray, "T+1 N B 3"]
    """Their centres of mass."""
    control: Float[np.ndarray, "T N U"]
    observed: Float[np.ndarray, "T N S"]
    """gymnasium's observation after each step."""
    reward: Float[np.ndarray, "T N"]
    terminated: Bool[np.ndarray, "T N"]

    def state(self, num_hidden_qpos: int) -> Float[np.ndarray, "T+1 N S"]:
        """Positions without the leading ones, and velocities."""
        return np.concatenate([self.qpos[..., num_hidden_qpos:], self.qvel], axis=-1)


def open_simulator(task: str) -> Any:
    """Gymnasium's environment for the robot of a task, without the time limit."""
    return make_simulator(task).unwrapped


def make_simulator(task: str) -> gymnasium.Env:
    """Gymnasium's environment for the robot of a task, with the time limit."""
    name = task.lstrip("0123456789").removesuffix("-ogmarl")
    if name == "coupledhalfcheetah":
        return _coupled_half_cheetah()
    if name == "manysegmentant":
        return many_segments("Ant", len([joint for own in TASKS[task][1].partition for joint in own]) // 4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is out of date", DeprecationWarning)
        return gymnasium.make(GYMNASIUM[name])


def many_segments(robot: str, num_segments: int) -> gymnasium.Env:
    """An Ant or Swimmer of gymnasium with gymnasium-robotics' document of many segments."""
    from gymnasium_robotics.envs.multiagent_mujoco import many_segment_ant, many_segment_swimmer

    template = {"Ant": many_segment_ant, "Swimmer": many_segment_swimmer}[robot]
    with tempfile.TemporaryDirectory() as folder:
        document = str(Path(folder, "robot.xml"))
        template.gen_asset(num_segments, document)
        return gymnasium.make(f"{robot}-v5", xml_file=document)


def _coupled_half_cheetah() -> gymnasium.Env:
    """gymnasium-robotics' pair of half cheetahs, with the dense gradient of the tendon, as before sparse storage."""
    from gymnasium_robotics.envs.multiagent_mujoco.coupled_half_cheetah import CoupledHalfCheetahEnv

    class Pair(CoupledHalfCheetahEnv):
        def _get_obs(self) -> np.ndarray:
            data, gradient = self.data, tendon_gradients(self.data)[0]
            positions, pull = (data.qpos[1:9], data.qpos[10:18]), (gradient[0:2], gradient[9:11])
            return np.concatenate([*positions, data.qvel, *pull, data.ten_length, data.ten_velocity])

    return gymnasium.wrappers.TimeLimit(Pair(), max_episode_steps=1000)


def tendon_gradients(data: mujoco.MjData) -> Float[np.ndarray, "tendons V"]:
    """The gradients of the tendons' lengths as a dense matrix; MuJoCo stores them sparse."""
    model = data.model
    dense = np.zeros((model.ntendon, model.nv))
    mujoco.mju_sparse2dense(dense, data.ten_J, model.ten_J_rownnz, model.ten_J_rowadr, model.ten_J_colind)
    return dense


def sinusoids(rng: np.random.Generator, num_steps: int, num_starts: int, size: int) -> Float[np.ndarray, "T N U"]:
    """Saturated noisy sinusoidal controls in [-1, 1] at 0.5 to 4 Hz."""
    frequency = rng.uniform(0.5, 4.0, (num_starts, 1))
    phase = rng.uniform(0.0, 2 * np.pi, (num_starts, size))
    seconds = 0.05 * np.arange(num_steps)[:, None, None]
    wave = 2.0 * np.sin(2 * np.pi * frequency * seconds + phase) + 0.2 * rng.normal(size=(num_steps, num_starts, size))
    return np.clip(wave, -1.0, 1.0).astype(np.float32)


def run(simulator: Any, qpos: np.ndarray, qvel: np.ndarray, control: Float[np.ndarray, "T N U"]) -> Reference:
    """Simulates C from each start with the given controls, without a warm start of the solver."""
    data, size = simulator.data, simulator.observation_space.shape[0]
    num_steps, num_starts = control.shape[:2]
    c = Reference(
        qpos=np.zeros((num_steps + 1, *qpos.shape)),
        qvel=np.zeros((num_steps + 1, *qvel.shape)),
        qacc_warmstart=np.zeros((num_steps + 1, *qvel.shape)),
        xpos=np.zeros((num_steps + 1, num_starts, *data.xpos.shape)),
        xipos=np.zeros((num_steps + 1, num_starts, *data.xpos.shape)),
        control=control,
        observed=np.zeros((num_steps, num_starts, size)),
        reward=np.zeros((num_steps, num_starts)),
        terminated=np.zeros((num_steps, num_starts), bool),
    )
    for n in range(num_starts):
        mujoco.mj_resetData(simulator.model, data)
        data.qpos[:], data.qvel[:] = qpos[n], qvel[n]
        mujoco.mj_kinematics(simulator.model, data)
        for t in range(num_steps + 1):
            c.qpos[t, n], c.qvel[t, n], c.qacc_warmstart[t, n] = data.qpos, data.qvel, data.qacc_warmstart
            c.xpos[t, n], c.xipos[t, n] = data.xpos, data.xipos
            if t < num_steps:
                c.observed[t, n], c.reward[t, n], c.terminated[t, n], *_ = simulator.step(control[t, n])
    return c


def trajectories(
    simulator: Any, rng: np.random.Generator, num_steps: int, num_starts: int, robot: Robot = HALF_CHEETAH
) -> Reference:
    """Simulates C from, in turn, a reset, a gait, a toss (in a random orientation), and fast motion 400 m away."""
    nq, nv, nu = simulator.model.nq, simulator.model.nv, simulator.model.nu
    strength = simulator.model.actuator_ctrlrange[0, 1]
    noise = robot.start.position_noise
    qpos = rng.uniform(-noise, noise, (num_starts, nq)) + simulator.init_qpos
    qvel = robot.start.velocity_noise * rng.normal(size=(num_starts, nv))
    gait, tossed, fast = (slice(k, None, 4) for k in (1, 2, 3))
    warm_up = run(simulator, qpos[gait], qvel[gait], strength * sinusoids(rng, 60, len(qpos[gait]), nu))
    qpos[gait], qvel[gait] = warm_up.qpos[-1], warm_up.qvel[-1]
    if nq > nv:  # a free joint
        qpos[tossed, 2] += 0.5
        turn = rng.normal(size=(len(qpos[tossed]), 4))
        if len(ancestors(simulator.model)) > 3:  # a long robot can only roll; on its end it would penetrate the ground
            turn[:, 2:] = 0.0
        qpos[tossed, 3:7] = turn / np.linalg.norm(turn, axis=1, keepdims=True)
    elif robot.place_dims == 1:
        for root in roots(simulator.model):
            turn = rng.uniform((-0.3, np.pi - 1.0), (0.2, np.pi + 1.0), (len(qpos[tossed]), 2))
            qpos[tossed, root + 1 : root + 3] += turn
    qvel[tossed] *= 20.0
    qvel[fast] *= 50.0
    if robot.place_dims:
        for root in roots(simulator.model):
            qpos[fast, root] += 400.0
            qvel[fast, root] = rng.uniform(4.0, 12.0, len(qvel[fast]))
    return run(simulator, qpos, qvel, (strength * sinusoids(rng, num_steps, num_starts, nu)).astype(np.float32))


def at(state: EnvState, reference: Reference, t: int, place_dims: int = 1) -> EnvState:
    """A batch of environment states, set to the state of C after t steps."""
    names = ("qpos", "qvel", "qacc_warmstart", "xpos", "xipos")
    values = {name: getattr(reference, name)[t] for name in names}
    root_position = np.zeros((len(values["qpos"]), 1, 3))
    root_position[:, 0, :place_dims] = values["qpos"][:, :place_dims]
    values |= {name: values[name] - root_position for name in ("xpos", "xipos")}
    values = {name: jnp.asarray(value, state.physics.qpos.dtype) for name, value in values.items()}
    return dataclasses.replace(state, physics=state.physics.replace(**values))


class Comparison(NamedTuple):
    """Errors of MJX over all steps of a reference, and its speed."""

    motion: Float[np.ndarray, "T N"]
    """Largest absolute difference of positions and velocities in the global state."""
    forces: Float[np.ndarray, "T N"]
    """Largest difference of inertia and forces in the state, relative where they exceed 1; 0 if there are none."""
    reward: Float[np.ndarray, "T N"]
    terminal: Bool[np.ndarray, "T N"]
    """Whether only one of MJX and C terminates."""
    rate: float
    """Control steps per second of processor time."""


def compare(env: Environment, robot: Robot, reference: Reference) -> Comparison:
    """Simulates one step of MJX from every state of a reference."""
    model = load_model(robot)
    factorization = factorize(model, TASKS[env.spec.name][1], 1, robot.categories)
    is_motion = np.array([category in _MOTION for category, _ in factorization.features[: factorization.state_dim]])
    num_steps, num_starts = reference.control.shape[:2]
    step = jax.jit(jax.vmap(env.step))
    now = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), num_starts))
    actions = jnp.asarray(as_actions(model, factorization.action_index, reference.control))
    starts = [at(now, reference, t, robot.place_dims) for t in range(num_steps)]
    jax.block_until_ready(step(starts[0], actions[0]))  # compiles
    begin = time.process_time()
    ends = jax.block_until_ready([step(*pair) for pair in zip(starts, actions, strict=True)])
    rate = num_steps * num_starts / (time.process_time() - begin)
    state, reward, terminal = (
        np.stack([np.asarray(getattr(end, name), np.float64) for end in ends])
        for name in ("state", "reward", "terminal")
    )
    error = np.abs(state - reference.observed)
    relative = (error / np.maximum(1.0, np.abs(reference.observed)))[..., ~is_motion]
    return Comparison(
        motion=error[..., is_motion].max(axis=-1),
        forces=relative.max(axis=-1, initial=0.0),
        reward=np.abs(reward - reference.reward),
        terminal=terminal.astype(bool) != reference.terminated,
        rate=rate,
    )


def as_actions(model: mujoco.MjModel, action_index: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Controls `[..., nu]` as joint actions `[..., A, U]` in [-1, 1]; idle actions are 1, which must have no effect."""
    action = control / model.actuator_ctrlrange[:, 1].astype(np.float32)
    return np.concatenate([action, np.ones_like(action[..., :1])], axis=-1)[..., action_index]


def rate_of_c(simulator: Any, robot: Robot, reference: Reference) -> float:
    """Control steps per second of processor time in C."""
    controls = reference.control.reshape(-1, simulator.model.nu)
    mujoco.mj_resetData(simulator.model, simulator.data)
    begin = time.process_time()
    for control in controls:
        simulator.data.ctrl[:] = control
        mujoco.mj_step(simulator.model, simulator.data, nstep=robot.frame_skip)
    return len(controls) / (time.process_time() - begin)


def measure(task: str, robot: Robot) -> dict[str, str]:
    """One row of the table."""
    simulator = open_simulator(task)
    load = os.getloadavg()[0]
    reference = trajectories(simulator, np.random.default_rng(0), NUM_STEPS, NUM_STARTS, robot)
    result = compare(build(task, robot, TASKS[task][1]), robot, reference)
    c_rate = rate_of_c(simulator, robot, reference)

    def errors(error: np.ndarray) -> str:
        return f"{np.quantile(error, 0.99):.0e}, {error.max():.0e}" if error.any() else "-"

    return {
        "task": task,
        "options": f"{robot.solver_iterations} / {robot.line_search_iterations} / {robot.max_contacts or 'all'}",
        "state": errors(result.motion),
        "forces": errors(result.forces),
        "reward": errors(result.reward),
        "ends": f"{result.terminal.sum()}",
        "MJX": f"{result.rate:,.0f}",
        "C": f"{c_rate:,.0f}",
        "load": f"{load:.1f}",
    }


@dataclasses.dataclass(frozen=True)
class ConformanceConfig:
    """Compares MJX with MuJoCo in C."""

    tasks: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Tasks to compare; all tasks by default."""
    options: tuple[str, ...] = ()
    """Solver options in place of the robot's own: Newton iterations, line search iterations, contacts (0: all), for
    example 100,50,0."""
    write: bool = False
    """Replace the rows of these tasks in results/CONFORMANCE.md."""


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """Replaces or adds the rows of a Markdown table, in the order of `TASKS`."""
    kept: dict[str, str] = {}
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
        kept = {line.split("|")[1].strip(): line for line in lines[1:]}
    kept |= {row["task"]: f"| {' | '.join(row.values())} |" for row in rows}
    head = [f"| {' | '.join(rows[0])} |", f"|{' --- |' * len(rows[0])}"]
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, "\n".join([_EXPLANATION, *head, *(kept[task] for task in TASKS if task in kept), ""]))


_EXPLANATION = f"""# MJX beside MuJoCo in C

`python -m experiments.conformance --write`; with names of tasks it replaces their rows only.

One control step from each of {NUM_STARTS * NUM_STEPS} states along trajectories of C (resets, gaits, tosses, fast runs
400 m away): MJX in single precision with its own solver options, C in double precision with those of the XML. Errors
are the 99 % quantile and the largest, `state` of positions and velocities, `forces` of inertia and forces in the state,
relative where they exceed 1. `ends`: steps after which only one of the two ends the episode. `options`: Newton
iterations / line search iterations / contacts kept. Speeds are control steps a second of one core, MJX in batches of
{NUM_STARTS}. `load` is the machine's in the minute before, this
command's own task before included. Speeds are of one pass of half a second, and vary by a factor of 2 and more.
"""


def parse_option(option: str) -> tuple[int, int, int]:
    """Newton iterations, line search iterations and contacts, as in `100,50,0`.

    Raises:
        UserError: they are not three such numbers.
    """
    try:
        newton, line_search, contacts = map(int, option.split(","))
        is_valid = newton >= 1 and line_search >= 1 and contacts >= 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise UserError(f"--options has '{option}'; it must be three numbers of at least 1, 1 and 0, such as 100,50,0")
    return newton, line_search, contacts


def main() -> None:
    """Prints the table."""
    config = parse_command(ConformanceConfig)
    enable_compilation_cache()
    mujoco.set_mju_user_warning(lambda _: None)  # half_cheetah.xml has a deprecated attribute
    for task in config.tasks:
        check_choice("task", task, tuple(TASKS))
    options = [parse_option(option) for option in config.options]
    rows = []
    for task in config.tasks or TASKS:
        robot = TASKS[task][0]
        candidates = [
            dataclasses.replace(
                robot, solver_iterations=newton, line_search_iterations=line_search, max_contacts=contacts or None
            )
            for newton, line_search, contacts in options
        ] or [robot]
        for candidate in candidates:
            rows.append(measure(task, candidate))
            print(rows[-1], flush=True)
            if config.write:
                write_table(TABLE, rows)
    print_table(f"errors: 99 % and largest; steps a CPU second, MJX in batches of {NUM_STARTS}", rows)


if __name__ == "__main__":
    with one_line_errors():
        main()
