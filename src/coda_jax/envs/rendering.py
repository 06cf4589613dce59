"""Looking at episodes: images and videos by MuJoCo's own renderer, off screen.

Needs OpenGL without a window: set MUJOCO_GL to `egl` (a driver or Mesa) before Python starts, or to
`osmesa`, without which, if it is not installed, MuJoCo cannot even be imported.
"""

from pathlib import Path

import jax
import mujoco
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from coda_jax.envs.physics import load_model
from coda_jax.envs.robots import Robot


class RenderingError(Exception):
    """There is no OpenGL to render with; the message is one line that says what to do."""


def render(
    robot: Robot,
    qpos: Float[np.ndarray, "T Q"] | Float[jax.Array, "T Q"],
    height: int = 240,
    width: int = 320,
    camera: str | int = "track",
) -> UInt8[np.ndarray, "T height width 3"]:
    """Draws a robot in a sequence of positions.

    Args:
        robot: whose model it is; a task's is `TASKS[name][0]`.
        qpos: positions, as in `EnvState.physics.qpos`; of a recorded state, `set_state(state).physics.qpos`.
        height: of an image, in pixels.
        width: likewise.
        camera: one of the model's cameras; -1 is a free one that sees the whole scene.

    Raises:
        RenderingError: there is no OpenGL.
    """
    model = load_model(robot)
    model.vis.global_.offheight = max(model.vis.global_.offheight, height)
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
    data = mujoco.MjData(model)
    if camera == "track" and mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera) < 0:
        camera = -1
    try:
        renderer = mujoco.Renderer(model, height, width)
    except Exception as error:  # of many types, by platform and driver
        raise RenderingError(
            f"MuJoCo cannot render here ({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
            "set MUJOCO_GL=egl before Python starts, and install Mesa or a driver"
        ) from error
    with renderer:
        frames = []
        for position in np.asarray(qpos, np.float64):
            data.qpos[:] = position
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            frames.append(renderer.render())
    return np.stack(frames)


def save_video(
    path: Path | str, frames: UInt8[np.ndarray, "T height width 3"], seconds_per_frame: float = 0.05
) -> None:
    """Writes frames as an animation that every browser shows: `.gif`, `.webp` or `.png`, by the file's ending."""
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=rest, duration=round(1000 * seconds_per_frame), loop=0)
