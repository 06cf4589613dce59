"""MP4 films: the pixels that come back from a real ffmpeg, and the refusals without one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.datasets import mp4
from experiments.datasets.film import check_film
from experiments.host.errors import UserError

HEIGHT, WIDTH = 32, 64


def moving_square(num_frames: int = 10) -> np.ndarray:
    """A bright red square of 16 pixels that moves four pixels to the right a frame, on dark grey."""
    frames = np.full((num_frames, HEIGHT, WIDTH, 3), 40, np.uint8)
    for number, frame in enumerate(frames):
        frame[8:24, 4 * number : 4 * number + 16] = (220, 30, 30)
    return frames


@pytest.fixture
def without_ffmpeg(monkeypatch):
    monkeypatch.setattr(mp4.shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)


def pretend(folder: Path, monkeypatch, script: str) -> None:
    """An ffmpeg of a few lines of shell, the only one on PATH."""
    executable = folder / "ffmpeg"
    executable.write_text(f"#!/bin/sh\n{script}\n")
    executable.chmod(0o755)
    monkeypatch.setattr(mp4.shutil, "which", lambda name: str(executable))


def test_a_real_ffmpeg_gives_the_frames_back(tmp_path):
    try:
        executable = mp4.find_ffmpeg()
    except UserError:
        pytest.skip("there is no ffmpeg")
    frames, path = moving_square(), tmp_path / "film.mp4"
    mp4.save_mp4(path, frames)
    decode = [executable, "-loglevel", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(decode, capture_output=True, check=True).stdout
    found = np.frombuffer(raw, np.uint8).reshape(frames.shape)
    assert np.abs(found.astype(int) - frames).mean() < 8
    red = found[:, 16, :, 0].astype(int) - found[:, 16, :, 1] > 80
    centres = [np.flatnonzero(row).mean() for row in red]
    np.testing.assert_allclose(centres, 7.5 + 4 * np.arange(10), atol=1.5)
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]


def test_the_frames_reach_ffmpeg_whole_and_replace_the_old_file(tmp_path, monkeypatch):
    pretend(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/arguments; for last; do :; done; cat > "$last"')
    path = tmp_path / "film.mp4"
    path.write_text("old")
    mp4.save_mp4(path, moving_square(), seconds_per_frame=0.05)
    assert path.read_bytes() == moving_square().tobytes()
    arguments = (tmp_path / "arguments").read_text()
    assert "-s 64x32 -r 20 -i -" in arguments and "libx264" in arguments


def test_a_failure_of_ffmpeg_is_one_line_and_leaves_no_file(tmp_path, monkeypatch):
    pretend(tmp_path, monkeypatch, 'cat > /dev/null; printf "Unknown encoder\\nlibx264\\n" >&2; exit 1')
    with pytest.raises(UserError, match=r"ffmpeg cannot write .*film.mp4 \(Unknown encoder libx264\); choose .gif"):
        mp4.save_mp4(tmp_path / "film.mp4", moving_square())
    assert not list(tmp_path.glob("*film*"))


def test_without_ffmpeg_an_mp4_is_refused_before_anything_is_simulated(tmp_path, without_ffmpeg):
    with pytest.raises(UserError, match=r"not on PATH: install it or `pip install 'coda-jax\[video\]'`"):
        check_film("--film", tmp_path / "film.mp4")
    check_film("--film", tmp_path / "film.gif")
    with pytest.raises(UserError, match=r"must end with .gif, .webp, .mp4, .png"):
        check_film("--film", tmp_path / "film.mov")


def test_the_package_stands_in_for_the_executable(monkeypatch, without_ffmpeg):
    class Package:
        @staticmethod
        def get_ffmpeg_exe():
            return "/packages/ffmpeg"

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", Package)
    assert mp4.find_ffmpeg() == "/packages/ffmpeg"
