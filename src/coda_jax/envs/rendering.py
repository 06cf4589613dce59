"""Images and videos of episodes, by MuJoCo's off-screen renderer.

Needs OpenGL without a window: before Python starts, set MUJOCO_GL to `egl` (needs a driver or Mesa) or to `osmesa`.
With `osmesa`, MuJoCo cannot be imported unless OSMesa is installed.
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
    """OpenGL is not available; the message is one line with the remedy."""


def render(
    robot: Robot,
    qpos: Float[np.ndarray, "T Q"] | Float[jax.Array, "T Q"],
    height: int = 240,
    width: int = 320,
    camera: str | int = "track",
) -> UInt8[np.ndarray, "T height width 3"]:
    """Renders a robot in a sequence of positions.

    Args:
        robot: the robot; that of a task is `TASKS[name][0]`.
        qpos: positions, as in `EnvState.physics.qpos`; for a recorded state, `set_state(state).physics.qpos`.
        height: height of an image, in pixels.
        width: width of an image, in pixels.
        camera: a camera of the model, or -1 for the free camera, which shows the whole scene and replaces a missing
            `track`.

    Raises:
        RenderingError: OpenGL is not available.
    """
    model = load_model(robot)
    model.vis.global_.offheight = max(model.vis.global_.offheight, height)
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
    data = mujoco.MjData(model)
    if camera == "track" and mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera) < 0:
        camera = -1
    try:
        renderer = mujoco.Renderer(model, height, width)
    except Exception as error:  # the type depends on platform and driver
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
    """Writes frames as an animation for web browsers: `.gif`, `.webp` or `.png`, by the suffix of the path."""
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=rest, duration=round(1000 * seconds_per_frame), loop=0)
