"""Videos of policies and of behaviour teams: the start of an episode, as a video or a strip of frames."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Array, Bool, Float
from PIL import Image

from coda_jax.data.teams import assets, load_teams
from coda_jax.envs.base import Environment, EnvState
from coda_jax.envs.mamujoco import TASKS, make
from coda_jax.envs.rendering import render, save_video
from coda_jax.envs.rollout import Act
from coda_jax.marl.matd3 import team_policy
from experiments.datasets.mp4 import find_ffmpeg, save_mp4
from experiments.host.errors import UserError

FORMATS = (".gif", ".webp", ".mp4", ".png")
"""Suffixes of a film; `.png` is a strip of frames."""

VIDEO_STEPS = 200
"""Maximum control steps of a video; a video ends with the episode."""

STRIP_STEPS = slice(60, 76, 2)
"""The steps of a strip; by then the robot runs at full speed."""


def check_film(flag: str, output: Path) -> None:
    """Refuses a file that a film cannot be written to, before anything is simulated.

    Args:
        flag: the flag that names the file.
        output: the file.

    Raises:
        UserError: another suffix, no such folder, or no ffmpeg for an `.mp4`.
    """
    if output.suffix not in FORMATS:
        raise UserError(f"{flag} is {output}; its name must end with {', '.join(FORMATS)}")
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"{flag} is {output}; give the path of a file in a folder that exists")
    if output.suffix == ".mp4":
        find_ffmpeg()


def film(task: str, output: Path) -> tuple[float, int]:
    """Renders the team with the highest return: a strip of frames for a `.png`, else a video.

    Returns:
        The recorded return of the team without noise, and the number of frames.

    Raises:
        RenderingError: OpenGL is not available.
        UserError: ffmpeg is missing or fails.
    """
    teams = load_teams(assets(task))
    best = np.unravel_index(teams.returns.argmax(), teams.returns.shape)
    weights = jax.tree.map(lambda leaf: leaf[best], teams.policy)
    env = make(task)
    apply = cast(Callable[..., Array], team_policy(env.spec, teams.width).apply)
    num_frames = film_policy(env, lambda obs, carry, _: (apply(weights, obs), carry), (), output)
    return float(teams.returns.max()), num_frames


def film_policy(env: Environment, act: Act, carry: Any, output: Path) -> int:
    """Renders the start of an episode of a joint policy: a strip of frames for a `.png`, else a video.

    Args:
        env: a MaMuJoCo task.
        act: the policy, without noise: `(obs [A, O], carry, key) -> (action [A, U], carry)`.
        carry: its memory at the start.
        output: the file.

    Returns:
        The number of frames.

    Raises:
        RenderingError: OpenGL is not available.
        UserError: ffmpeg is missing or fails.
    """
    positions = _positions(env, act, carry)
    robot = TASKS[env.spec.name][0]
    if output.suffix == ".png":
        frames = render(robot, positions[STRIP_STEPS], height=160, width=160)
        Image.fromarray(np.concatenate(list(frames), axis=1)).save(output)
    else:
        frames = render(robot, positions)
        (save_mp4 if output.suffix == ".mp4" else save_video)(output, frames)
    return len(frames)


def _positions(env: Environment, act: Act, carry: Any) -> Float[np.ndarray, "T Q"]:
    """Generalised positions along an episode, from its start up to its end or to `VIDEO_STEPS`."""
    key = jax.random.key(0)

    def step(carried: tuple[EnvState, Any], _: None) -> tuple[Any, tuple[Float[Array, "Q"], Bool[Array, ""]]]:
        state, memory = carried
        action, memory = act(state.obs, memory, key)
        return (env.step(state, action), memory), (state.physics.qpos, state.terminal)

    start = (jax.jit(env.reset)(jax.random.clone(key)), carry)
    _, (positions, terminal) = jax.jit(lambda start: jax.lax.scan(step, start, length=VIDEO_STEPS))(start)
    return np.asarray(positions)[np.cumsum(terminal) - terminal == 0]
