"""Rendering, in subprocesses: MuJoCo selects its OpenGL backend at import."""

import os
import subprocess
import sys

import numpy as np
from PIL import Image

from coda_jax.envs.rendering import save_video

DRAW = """
import numpy as np
from coda_jax.envs.physics import load_model
from coda_jax.envs.rendering import RenderingError, render
from coda_jax.envs.robots import HALF_CHEETAH, REACHER
try:
    for robot in (HALF_CHEETAH, REACHER):
        rest = load_model(robot).qpos0
        frames = render(robot, np.stack([rest, rest + 0.4, rest]), height=60, width=80)
        assert frames.shape == (3, 60, 80, 3) and frames.dtype == np.uint8
        assert frames.std() > 10
        assert (frames[0] == frames[2]).all() and (frames[0] != frames[1]).any()
    print("drawn")
except RenderingError as error:
    print(error)
"""


def draw(gl: str) -> list[str]:
    environment = os.environ | {"MUJOCO_GL": gl, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", DRAW], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_robots_are_drawn_or_the_error_gives_advice():
    (line,) = draw("egl")
    assert line == "drawn" or line.endswith("and install Mesa or a driver")


def test_without_opengl_the_error_gives_advice():
    (line,) = draw("disable")
    assert "MUJOCO_GL=egl" in line


def test_a_video_has_all_frames(tmp_path):
    frames = np.zeros((4, 30, 40, 3), np.uint8)
    frames[np.arange(4), :, :, np.arange(4) % 3] = 255
    save_video(tmp_path / "robot.gif", frames)
    with Image.open(tmp_path / "robot.gif") as video:
        assert (video.n_frames, video.size, video.info["duration"]) == (4, (40, 30), 50)
