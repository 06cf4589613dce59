"""MJX beside MuJoCo in C, by solver options: how exact it is, and how fast on this machine.

    python -m experiments.conformance

An error is the largest absolute difference of the global state, after one control step and after a free run of five.
The starts lie all along trajectories of C that cover what an episode meets: resets, gaits, flipped and falling poses,
fast runs far from the origin. One or two steps in a thousand are off by more than 1e-3 whatever the options, where a
hard landing amplifies the rounding of single precision; in double precision `tests/envs/test_mamujoco.py` finds 1e-10.

Measured on two x86 cores (errors from 9,600 starts; steps a second of processor time):

| iterations / line search | 1 step: 99 %, largest, above 0.01 | 5 steps: 99 % | MJX   | MJX / C |
| ------------------------ | --------------------------------- | ------------- | ----- | ------- |
| 100 / 50                 | 2e-4, 2e-2, 2                     | 4e-3          | 1,552 | 0.06    |
| 100 / 8                  | 2e-4, 2e-2, 2                     | 4e-3          | 4,333 | 0.18    |
| 20 / 4 (the choice)      | 2e-4, 2e-2, 2                     | 4e-3          | 4,235 | 0.15    |
| 4 / 8                    | 2e-4, 3, 11                       | 1e-2          | 3,588 | 0.14    |
| 1 / 4                    | 10, 2e4, 3,635                    | diverges      | 8,052 | 0.30    |
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float

from coda_jax.envs.factorization import factorize
from coda_jax.envs.mamujoco import TASKS, Environment, EnvState, build, load_model
from experiments.console import print_table

TASK, C_TASK = "2halfcheetah", "HalfCheetah-v5"
SOLVER_OPTIONS = ((100, 50), (100, 8), (20, 4), (4, 8), (1, 4))
"""Newton iterations and line search iterations; MuJoCo's defaults first."""
NUM_STARTS, BATCH, NUM_STEPS, FREE_STEPS = 480, 16, 20, 5


class Reference(NamedTuple):
    """What MuJoCo in C did from N starts in T control steps, in double precision."""

    qpos: Float[np.ndarray, "T+1 N Q"]
    qvel: Float[np.ndarray, "T+1 N V"]
    qacc_warmstart: Float[np.ndarray, "T+1 N V"]
    """The solver's first guess of the accelerations: those of the physics step before."""
    control: Float[np.ndarray, "T N U"]
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
        control=control,
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


def trajectories(simulator: Any, rng: np.random.Generator, num_steps: int, num_starts: int) -> Reference:
    """Runs C from, in turn, a reset, a gait, a flipped pose and a fast run 400 m from the origin."""
    nq, nv, nu = simulator.model.nq, simulator.model.nv, simulator.model.nu
    qpos = rng.uniform(-0.1, 0.1, (num_starts, nq))
    qvel = 0.1 * rng.normal(size=(num_starts, nv))
    gait, flipped, fast = (slice(k, None, 4) for k in (1, 2, 3))
    warm_up = run(simulator, qpos[gait], qvel[gait], sinusoids(rng, 60, len(qpos[gait]), nu))
    qpos[gait], qvel[gait] = warm_up.qpos[-1], warm_up.qvel[-1]
    qpos[flipped, 1:3] += rng.uniform((-0.3, np.pi - 1.0), (0.2, np.pi + 1.0), (len(qpos[flipped]), 2))
    qvel[flipped] *= 20.0
    qpos[fast, 0] += 400.0
    qvel[fast] *= 50.0
    qvel[fast, 0] = rng.uniform(4.0, 12.0, len(qvel[fast]))
    return run(simulator, qpos, qvel, sinusoids(rng, num_steps, num_starts, nu))


def at(now: EnvState, reference: Reference, t: int, starts: slice = slice(None)) -> EnvState:
    """A batch of environments, put where C was after t steps."""
    names = ("qpos", "qvel", "qacc_warmstart")
    there = {name: jnp.asarray(getattr(reference, name)[t, starts], now.physics.qpos.dtype) for name in names}
    return dataclasses.replace(now, physics=now.physics.replace(**there))


def free_run(env: Environment) -> Callable[[EnvState, Float[Array, "T N A U"]], Float[Array, "T N S"]]:
    """The global states that N environments pass through."""

    def body(now: EnvState, action: Array) -> tuple[EnvState, Array]:
        now = jax.vmap(env.step)(now, action)
        return now, now.state

    return jax.jit(lambda start, actions: jax.lax.scan(body, start, actions)[1])


def main() -> None:
    """Prints the table."""
    mujoco.set_mju_user_warning(lambda _: None)  # half_cheetah.xml has a deprecated attribute
    robot, graph = TASKS[TASK]
    split = factorize(load_model(robot), graph, 1, robot.num_hidden_qpos)
    simulator = open_simulator()
    reference = trajectories(simulator, np.random.default_rng(0), NUM_STEPS + FREE_STEPS, NUM_STARTS)
    truth = reference.state(robot.num_hidden_qpos)
    starts = [(t, slice(n, n + BATCH)) for t in range(NUM_STEPS) for n in range(0, NUM_STARTS, BATCH)]

    def rate_of_c() -> float:
        torques = reference.control.reshape(-1, simulator.model.nu)
        begin = time.process_time()
        for torque in torques:
            simulator.data.ctrl[:] = torque
            mujoco.mj_step(simulator.model, simulator.data, nstep=robot.frame_skip)
        return len(torques) / (time.process_time() - begin)

    def measure(env: Environment) -> tuple[Float[np.ndarray, "K F N"], float]:
        """Errors of K free runs of F steps, and control steps a second."""
        simulate = free_run(env)
        now = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), BATCH))
        runs = [
            (at(now, reference, t, n), jnp.asarray(reference.control[t : t + FREE_STEPS, n][..., split.action_index]))
            for t, n in starts
        ]
        jax.block_until_ready(simulate(*runs[0]))  # compiles
        begin = time.process_time()
        ends = jax.block_until_ready([simulate(*run) for run in runs])
        rate = len(runs) * FREE_STEPS * BATCH / (time.process_time() - begin)
        goals = [truth[t + 1 : t + 1 + FREE_STEPS, n] for t, n in starts]
        return np.abs(np.stack(ends) - np.stack(goals)).max(axis=-1), rate

    rows = []
    for iterations, line_search in SOLVER_OPTIONS:
        options = dataclasses.replace(robot, solver_iterations=iterations, line_search_iterations=line_search)
        error, rate = measure(build(TASK, options, graph))
        c_rate = rate_of_c()
        one, five = error[:, 0], error[:, -1]
        rows.append(
            {
                "options": f"{iterations} / {line_search}",
                "1 step: 99 %": f"{np.quantile(one, 0.99):.0e}",
                "largest": f"{one.max():.0e}",
                "> 0.01": f"{np.sum(one > 0.01)}",
                "5 steps: 99 %": f"{np.quantile(five, 0.99):.0e}",
                "MJX": f"{rate:,.0f}",
                "C": f"{c_rate:,.0f}",
                "MJX / C": f"{rate / c_rate:.2f}",
            }
        )
    print_table(f"{TASK}: errors from {one.size} starts; steps a CPU second in batches of {BATCH}", rows)


if __name__ == "__main__":
    main()
