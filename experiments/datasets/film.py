"""Videos of behaviour teams: the start of an episode of the best snapshot, as a video or a strip of frames."""

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
"""Maximum control steps of a video; a video ends with the episode."""

STRIP_STEPS = slice(60, 76, 2)
"""The steps of a strip; by then the robot runs at full speed."""


def film(task: str, output: Path) -> tuple[float, int]:
    """Renders the team with the highest return: a strip of frames for a `.png`, else a video.

    Returns:
        The recorded return of the team without noise, and the number of frames.

    Raises:
        RenderingError: OpenGL is not available.
    """
    teams = load_teams(assets(task))
    best = np.unravel_index(teams.returns.argmax(), teams.returns.shape)
    weights = jax.tree.map(lambda leaf: leaf[best], teams.policy)
    env = make(task)
    apply = cast(Callable[..., Array], team_policy(env.spec, teams.width).apply)

    def step(state: EnvState, _: None) -> tuple[EnvState, tuple[Float[Array, "Q"], Bool[Array, ""]]]:
        return env.step(state, apply(weights, state.obs)), (state.physics.qpos, state.terminal)

    start = jax.jit(env.reset)(jax.random.key(0))
    _, (positions, terminal) = jax.jit(lambda start: jax.lax.scan(step, start, length=VIDEO_STEPS))(start)
    positions = np.asarray(positions)[np.cumsum(terminal) - terminal == 0]
    if output.suffix == ".png":
        frames = render(TASKS[task][0], positions[STRIP_STEPS], height=160, width=160)
        Image.fromarray(np.concatenate(list(frames), axis=1)).save(output)
    else:
        frames = render(TASKS[task][0], positions)
        save_video(output, frames)
    return float(teams.returns.max()), len(frames)
