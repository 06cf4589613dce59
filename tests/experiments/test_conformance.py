"""The conformance table, and the compared models, without compiling a robot."""

import numpy as np
import pytest

from coda_jax.envs.factorization import factorize
from coda_jax.envs.physics import load_model
from coda_jax.envs.tasks import TASKS
from experiments import conformance


def test_rows_replace_those_of_their_task_and_keep_the_others(tmp_path):
    table = tmp_path / "CONFORMANCE.md"
    conformance.write_table(table, [{"task": "4ant", "MJX": "1"}, {"task": "2walker", "MJX": "2"}])
    conformance.write_table(table, [{"task": "2walker", "MJX": "3"}, {"task": "2halfcheetah", "MJX": "4"}])
    lines = [line for line in table.read_text().splitlines() if line.startswith("|")]
    assert lines == ["| task | MJX |", "| --- | --- |", "| 2halfcheetah | 4 |", "| 4ant | 1 |", "| 2walker | 3 |"]


def test_controls_as_joint_actions():
    robot, graph = TASKS["2humanoid"]
    model = load_model(robot)
    split = factorize(model, graph, 1, robot.categories)
    action = conformance.as_actions(model, split.action_index, np.full((3, 17), 0.2))
    assert action.shape == (3, 2, 9)
    np.testing.assert_allclose(action.reshape(3, -1)[:, :-1], 0.5)
    assert (action[:, 1, -1] == 1.0).all()


def test_an_unknown_task_is_a_one_line_error(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["conformance", "5ant"])
    monkeypatch.setattr(conformance, "enable_compilation_cache", lambda: None)
    with pytest.raises(SystemExit) as stop, conformance.one_line_errors():
        conformance.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'5ant'" in line and "4ant" in line


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_simulator_of_its_model(task: str):
    ours, theirs = load_model(TASKS[task][0]), conformance.open_simulator(task).model
    for name in ("body_mass", "body_inertia", "dof_armature", "dof_damping", "jnt_stiffness", "geom_friction", "qpos0"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert ours.opt.timestep == theirs.opt.timestep
    assert TASKS[task][0].frame_skip == conformance.open_simulator(task).frame_skip
