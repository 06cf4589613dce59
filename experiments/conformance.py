"""MJX beside MuJoCo in C, by solver options: how exact it is, and how fast on this machine.

    python -m experiments.conformance

An error is the largest absolute difference of the global state, after one and after five control steps, over starts that
cover what an episode meets: resets, gaits, flipped and falling poses, fast runs far from the origin. Longer free runs
say nothing: the robot is chaotic, so C parts from itself too once its start is rounded to single precision.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import mujoco
import numpy as np
from jaxtyping import Array, Float

from coda_jax.envs.factorization import factorize
from coda_jax.envs.mamujoco import TASKS, Environment, EnvState, build, load_model
from experiments.console import print_table

TASK, C_TASK = "2halfcheetah", "HalfCheetah-v5"
SOLVER_OPTIONS = ((100, 50), (4, 8), (2, 8), (1, 4))
"""Newton iterations and line search iterations; MuJoCo's defaults first."""
NUM_STARTS, BATCH, NUM_STEPS = 32, 16, 100


class Reference(NamedTuple):
    """What MuJoCo in C did from N starts in T control steps, in double precision."""

    qpos: Float[np.ndarray, "T+1 N Q"]
    qvel: Float[np.ndarray, "T+1 N V"]
    qacc_warmstart: Float[np.ndarray, "T+1 N V"]
    """The solver's first guess of the accelerations: those of the physics step before."""
    reward: Float[np.ndarray, "T N"]

    def state(self, num_hidden_qpos: int) -> Float[np.ndarray, "T+1 N S"]:
        """The global state, as in `EnvState`."""
        return np.concatenate([self.qpos[..., num_hidden_qpos:], self.qvel], axis=-1)


def open_simulator() -> Any:
    """HalfCheetah in C, as gymnasium steps it, without the time limit."""
    return gymnasium.make(C_TASK).unwrapped


def sinusoids(rng: np.random.Generator, num_steps: int, num_starts: int, size: int) -> Float[np.ndarray, "T N U"]:
    """Joint torques that swing between -1 and 1 at 0.5 to 4 Hz and saturate, with some noise."""
    frequency = rng.uniform(0.5, 4.0, (num_starts, 1))
    phase = rng.uniform(0.0, 2 * np.pi, (num_starts, size))
    clock = 0.05 * np.arange(num_steps)[:, None, None]
    swing = 2.0 * np.sin(2 * np.pi * frequency * clock + phase) + 0.2 * rng.normal(size=(num_steps, num_starts, size))
    return np.clip(swing, -1.0, 1.0).astype(np.float32)


def run(simulator: Any, qpos: np.ndarray, qvel: np.ndarray, control: Float[np.ndarray, "T N U"]) -> Reference:
    """Runs C from each start, the solver cold, under the given joint torques."""
    data = simulator.data
    num_steps, num_starts = control.shape[:2]
    seen = Reference(
        qpos=np.zeros((num_steps + 1, *qpos.shape)),
        qvel=np.zeros((num_steps + 1, *qvel.shape)),
        qacc_warmstart=np.zeros((num_steps + 1, *qvel.shape)),
        reward=np.zeros((num_steps, num_starts)),
    )
    for n in range(num_starts):
        mujoco.mj_resetData(simulator.model, data)
        data.qpos[:], data.qvel[:] = qpos[n], qvel[n]
        for t in range(num_steps + 1):
            seen.qpos[t, n], seen.qvel[t, n], seen.qacc_warmstart[t, n] = data.qpos, data.qvel, data.qacc_warmstart
            if t < num_steps:
                seen.reward[t, n] = simulator.step(control[t, n])[1]
    return seen


def draw_starts(simulator: Any, rng: np.random.Generator, num_starts: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities of starts, in turn: a reset, a gait, a flipped pose, a fast run 400 m from the origin."""
    nq, nv = simulator.model.nq, simulator.model.nv
    qpos = rng.uniform(-0.1, 0.1, (num_starts, nq))
    qvel = 0.1 * rng.normal(size=(num_starts, nv))
    gait, flipped, fast = (slice(k, None, 4) for k in (1, 2, 3))
    warm_up = run(simulator, qpos[gait], qvel[gait], sinusoids(rng, 60, len(qpos[gait]), simulator.model.nu))
    qpos[gait], qvel[gait] = warm_up.qpos[-1], warm_up.qvel[-1]
    qpos[flipped, 1:3] += rng.uniform((-0.3, np.pi - 1.0), (0.2, np.pi + 1.0), (len(qpos[flipped]), 2))
    qvel[flipped] *= 20.0
    qpos[fast, 0] += 400.0
    qvel[fast] *= 50.0
    qvel[fast, 0] = rng.uniform(4.0, 12.0, len(qvel[fast]))
    return qpos, qvel


def at(now: EnvState, reference: Reference, t: int, starts: slice = slice(None)) -> EnvState:
    """A batch of environments, put where C was after t steps."""
    physics = now.physics.replace(
        qpos=reference.qpos[t, starts].astype(np.float32),
        qvel=reference.qvel[t, starts].astype(np.float32),
        qacc_warmstart=reference.qacc_warmstart[t, starts].astype(np.float32),
    )
    return now.replace(physics=physics)


def free_run(env: Environment) -> Callable[[EnvState, Float[Array, "T N A U"]], Float[Array, "T N S"]]:
    """The global states that N environments pass through."""

    def body(now: EnvState, action: Array) -> tuple[EnvState, Array]:
        now = jax.vmap(env.step)(now, action)
        return now, now.state

    return jax.jit(lambda start, actions: jax.lax.scan(body, start, actions)[1])


def seconds(function: Callable[[], Any]) -> float:
    """The fastest of three calls."""
    spans = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        spans.append(time.perf_counter() - start)
    return min(spans)


def main() -> None:
    """Prints the table."""
    robot, graph = TASKS[TASK]
    split = factorize(load_model(robot), graph, 1, robot.num_hidden_qpos)
    simulator = open_simulator()
    rng = np.random.default_rng(0)
    qpos, qvel = draw_starts(simulator, rng, NUM_STARTS)
    control = sinusoids(rng, NUM_STEPS, NUM_STARTS, simulator.model.nu)
    reference = run(simulator, qpos, qvel, control)
    truth = reference.state(robot.num_hidden_qpos)[1:]

    def step_c() -> None:
        for torque in control[:, 0]:
            simulator.data.ctrl[:] = torque
            mujoco.mj_step(simulator.model, simulator.data, nstep=robot.frame_skip)

    c_rate = NUM_STEPS / seconds(step_c)
    rows = []
    for iterations, line_search in SOLVER_OPTIONS:
        options = dataclasses.replace(robot, solver_iterations=iterations, line_search_iterations=line_search)
        env = build(TASK, options, graph)
        simulate = free_run(env)
        blank = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), BATCH))
        errors = []
        for n in range(0, NUM_STARTS, BATCH):
            batch = slice(n, n + BATCH)
            start, actions = at(blank, reference, 0, batch), control[:, batch][:, :, split.action_index]
            errors.append(np.abs(np.asarray(simulate(start, actions)) - truth[:, batch]).max(axis=(1, 2)))
        error = np.max(errors, axis=0)
        rate = BATCH * NUM_STEPS / seconds(lambda: jax.block_until_ready(simulate(start, actions)))  # noqa: B023
        rows.append(
            {
                "iterations / line search": f"{iterations} / {line_search}",
                "error, 1 step": f"{error[0]:.1e}",
                "error, 5 steps": f"{error[4]:.1e}",
                "MJX steps/s": f"{rate:,.0f}",
                "C steps/s": f"{c_rate:,.0f}",
                "MJX / C": f"{rate / c_rate:.2f}",
            }
        )
    print_table(f"{TASK}: MJX in batches of {BATCH} on {jax.devices()[0].platform}, C on one core", rows)


if __name__ == "__main__":
    main()
