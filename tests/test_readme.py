"""The README's example of MaMuJoCo runs as it stands there."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_example_of_mamujoco_runs(capsys):
    section = README.read_text().split("## MaMuJoCo in MJX, alone")[1].split("\n## ")[0]
    play, draw = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    names: dict = {}
    exec(compile(play, "README.md", "exec"), names)
    assert "num_agents=3" in capsys.readouterr().out
    assert names["episodes"].steps.obs.shape == (100, 16, 3, 9)
    assert 10 < names["ends"].sum() < 200  # a hopper falls within some tens of steps
    # What the second block draws; `test_rendering` draws in a process that has OpenGL.
    (positions,) = re.findall(r"^positions = (.*)$", draw, flags=re.MULTILINE)
    assert eval(positions, names).shape == (100, 6)
