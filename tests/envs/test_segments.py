"""Robots of repeated parts: models against those of gymnasium-robotics, graphs against hand-written ones."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import gymnasium_robotics.envs.multiagent_mujoco as theirs
import mujoco
import numpy as np
import pytest

from coda_jax.envs.factorization import joints_by_distance
from coda_jax.envs.physics import load_model
from coda_jax.envs.robots import (
    ANT,
    SWIMMER,
    coupled_half_cheetah,
    many_segment_ant,
    many_segment_swimmer,
)

NOT_PHYSICAL = ("name", "rgba", "matid", "group", "bvh", "site_size", "user", "plugin", "exclude")
"""Substrings of the names of model fields without effect on the dynamics."""
CHOSEN = ("iterations", "ls_iterations", "solver", "tendon_invweight0")
"""Fields set by `load_model`."""


def assert_same_physics(ours: mujoco.MjModel, theirs: mujoco.MjModel) -> None:
    kinds = ("body_", "jnt_", "dof_", "geom_", "actuator_", "tendon_", "wrap_", "site_", "eq_", "pair_", "qpos")
    fields = [
        name
        for name in dir(ours)
        if name.startswith(kinds) and name not in CHOSEN and not any(part in name for part in NOT_PHYSICAL)
    ]
    fields = [name for name in fields if isinstance(getattr(ours, name), np.ndarray)]
    assert len(fields) > 100
    for name in fields:
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    options = [name for name in dir(ours.opt) if not name.startswith("_") and name not in CHOSEN]
    assert {"timestep", "gravity", "integrator", "density", "viscosity"} <= {*options}
    for name in options:
        np.testing.assert_array_equal(getattr(ours.opt, name), getattr(theirs.opt, name), err_msg=name)


def reference_model(template, num_segments: int, folder: Path) -> mujoco.MjModel:
    template.gen_asset(num_segments, str(folder / "robot.xml"))
    return mujoco.MjModel.from_xml_path(str(folder / "robot.xml"))


@pytest.mark.parametrize(("num_agents", "segments"), [(1, 2), (3, 1), (2, 2), (10, 2)])
def test_long_swimmer_model_equals_gymnasium_robotics(num_agents: int, segments: int, tmp_path: Path):
    robot, graph = many_segment_swimmer(num_agents, segments)
    assert [len(own) for own in graph.partition] == [segments] * num_agents
    assert_same_physics(
        load_model(robot), reference_model(theirs.many_segment_swimmer, num_agents * segments, tmp_path)
    )


@pytest.mark.parametrize(("num_agents", "segments"), [(1, 1), (2, 1), (2, 3)])
def test_long_ant_model_equals_gymnasium_robotics(num_agents: int, segments: int, tmp_path: Path):
    robot, graph = many_segment_ant(num_agents, segments)
    assert [len(own) for own in graph.partition] == [4 * segments] * num_agents
    assert_same_physics(load_model(robot), reference_model(theirs.many_segment_ant, num_agents * segments, tmp_path))


@pytest.mark.filterwarnings("ignore:compiler attribute 'settotalmass' is deprecated")
def test_coupled_half_cheetah_model_equals_gymnasium_robotics():
    asset = Path(theirs.__file__).parent / "assets" / "coupled_half_cheetah.xml"
    assert_same_physics(load_model(coupled_half_cheetah()[0]), mujoco.MjSpec.from_file(str(asset)).compile())


def test_smallest_long_swimmer_equals_the_swimmer():
    assert_same_physics(load_model(many_segment_swimmer(2, 1)[0]), load_model(SWIMMER))


def test_legs_of_a_long_ant_equal_legs_of_the_ant():
    """By name: the bodies with observed forces, and the order of the motors."""
    robot, graph = many_segment_ant(2, 2)
    model, single = load_model(robot), load_model(ANT)
    names = [[model.body(k).name for k in bodies] for bodies in (graph.bodies["hip2_3"], graph.bodies["ankle2_3"])]
    assert names == [["torso_3", "back_leg_3"], ["back_leg_3", "aux_3_3", ""]]
    assert [model.joint(j).name for j in model.actuator_trnid[:, 0]] == [j for own in graph.partition for j in own]
    np.testing.assert_array_equal(model.joint("ankle1_0").range, single.joint("ankle_1").range)
    np.testing.assert_array_equal(model.joint("ankle2_3").range, single.joint("ankle_3").range)


def test_hips_of_neighbouring_torsos_are_neighbours():
    _, graph = many_segment_ant(3, 1)
    hips = [[f"hip1_{k}", f"hip2_{k}"] for k in range(3)]
    levels = [joints_by_distance(graph, own, 2)[1:] for own in graph.partition]
    assert levels == [
        [hips[1], ["ankle1_1", "ankle2_1", *sorted(hips[2])]],
        [sorted(hips[0] + hips[2]), ["ankle1_0", "ankle1_2", "ankle2_0", "ankle2_2"]],
        [hips[1], ["ankle1_1", "ankle2_1", *sorted(hips[0])]],
    ]


def test_a_robot_can_be_given_as_a_document():
    xml = "\n<mujoco><worldbody><body><freejoint/><geom size='1'/></body></worldbody></mujoco>"
    robot = dataclasses.replace(SWIMMER, xml=xml)
    assert load_model(robot).nv == 6


def test_documents_are_built_without_importing_gymnasium():
    """The import would double the time until a program reports wrong arguments."""
    code = "import sys, coda_jax.envs.tasks as tasks; sys.exit('gymnasium' in sys.modules or not tasks.TASKS)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
