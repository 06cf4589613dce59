"""Looking at a behaviour team: how its best snapshot starts an episode, as a video or a strip of frames."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import jax
import numpy as np
from jaxtyping import Array, Bool, Float
from PIL import Image

from coda_jax.data.teams import assets, load_teams
from coda_jax.envs.base import EnvState
from coda_jax.envs.mamujoco import TASKS, make
from coda_jax.envs.rendering import render, save_video
from coda_jax.marl.matd3 import team_policy

VIDEO_STEPS = 200
"""Control steps of a video, or fewer where the episode ends."""

STRIP_STEPS = slice(60, 76, 2)
"""The steps that a strip shows, when the robot is up to speed."""


def film(task: str, output: Path) -> tuple[float, int]:
    """Films the team with the highest return: as a strip of frames into a `.png`, else as a video.

    Returns:
        The team's return without noise as it was recorded, and the number of frames.

    Raises:
        RenderingError: there is no OpenGL.
    """
    teams = load_teams(assets(task))
    best = np.unravel_index(teams.returns.argmax(), teams.returns.shape)
    weights = jax.tree.map(lambda leaf: leaf[best], teams.policy)
    env = make(task)
    apply = cast(Callable[..., Array], team_policy(env.spec, teams.width).apply)

    def step(now: EnvState, _: None) -> tuple[EnvState, tuple[Float[Array, "Q"], Bool[Array, ""]]]:
        return env.step(now, apply(weights, now.obs)), (now.physics.qpos, now.terminal)

    start = jax.jit(env.reset)(jax.random.key(0))
    _, (positions, ended) = jax.jit(lambda start: jax.lax.scan(step, start, length=VIDEO_STEPS))(start)
    positions = np.asarray(positions)[np.cumsum(ended) - ended == 0]
    if output.suffix == ".png":
        frames = render(TASKS[task][0], positions[STRIP_STEPS], height=160, width=160)
        Image.fromarray(np.concatenate(list(frames), axis=1)).save(output)
    else:
        frames = render(TASKS[task][0], positions)
        save_video(output, frames)
    return float(teams.returns.max()), len(frames)
