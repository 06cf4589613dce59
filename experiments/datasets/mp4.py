"""MP4 videos by ffmpeg: the executable on PATH, else that of the package imageio-ffmpeg (the extra `video`)."""

import importlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from experiments.host.errors import UserError


def find_ffmpeg() -> str:
    """The path of an ffmpeg executable.

    Raises:
        UserError: there is none; the message says what to install.
    """
    on_path = shutil.which("ffmpeg")
    if on_path is not None:
        return on_path
    try:
        return importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # RuntimeError: a wheel without an executable
        raise UserError(
            ".mp4 needs ffmpeg, which is not on PATH: install it or `pip install 'coda-jax[video]'`, or choose .gif"
        ) from None


def save_mp4(path: Path, frames: UInt8[np.ndarray, "T height width 3"], seconds_per_frame: float = 0.05) -> None:
    """Writes frames of even height and width as H.264 in MP4, which browsers and slides play, atomically.

    Raises:
        UserError: there is no ffmpeg, or it fails.
    """
    _, height, width, _ = frames.shape
    partial = path.with_name(f".{path.name}.partial")
    source = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {1 / seconds_per_frame:g} -i -"
    target = "-c:v libx264 -pix_fmt yuv420p -movflags +faststart -f mp4"
    command = [find_ffmpeg(), *f"-loglevel error -y {source} {target}".split(), str(partial)]
    finished = subprocess.run(command, input=frames.tobytes(), capture_output=True, check=False)
    if finished.returncode != 0:
        partial.unlink(missing_ok=True)
        reason = " ".join(finished.stderr.decode(errors="replace").split()) or f"exit status {finished.returncode}"
        raise UserError(f"ffmpeg cannot write {path} ({reason}); choose .gif")
    partial.replace(path)
