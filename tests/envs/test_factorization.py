"""Factorisation of robots, against the hand-written graphs and indices of gymnasium-robotics."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from gymnasium_robotics import mamujoco_v1
from gymnasium_robotics.envs.multiagent_mujoco.obsk import get_parts_and_edges

from coda_jax.envs.factorization import Feature, JointGraph, factorize, joints_by_distance
from coda_jax.envs.physics import load_model
from coda_jax.envs.robots import HALF_CHEETAH, many_segment_ant, many_segment_swimmer
from coda_jax.envs.tasks import TASKS
from experiments.conformance import make_simulator, many_segments, tendon_gradients

CHEETAH = TASKS["2halfcheetah"][1]

MAMUJOCO = {
    "2halfcheetah": ("HalfCheetah", "2x3"),
    "6halfcheetah": ("HalfCheetah", "6x1"),
    "4ant": ("Ant", "4x2"),
    "2ant": ("Ant", "2x4"),
    "2antd": ("Ant", "2x4d"),
    "4ant-v5": ("Ant", "4x2"),
    "2ant-v5": ("Ant", "2x4"),
    "2antd-v5": ("Ant", "2x4d"),
    "3hopper": ("Hopper", "3x1"),
    "2walker": ("Walker2d", "2x3"),
    "2swimmer": ("Swimmer", "2x1"),
    "2reacher": ("Reacher", "2x1"),
    "2humanoid": ("Humanoid", "9|8"),
    "2humanoidstandup": ("HumanoidStandup", "9|8"),
    "2manysegmentant": ("ManySegmentAnt", "2x3"),
    "2coupledhalfcheetah": ("CoupledHalfCheetah", "1p1"),
}
"""The scenario and partition of `mamujoco_v1` of each task."""

SPLITS = TASKS | {"10manysegmentswimmer": many_segment_swimmer(10, 2), "4manysegmentant": many_segment_ant(4, 1)}
PARTITIONS = MAMUJOCO | {
    "10manysegmentswimmer": ("ManySegmentSwimmer", "10x2"),
    "4manysegmentant": ("ManySegmentAnt", "4x1"),
}
"""As `MAMUJOCO`, with two sizes that are not named tasks."""


def mamujoco(task: str, obsk: int | None) -> Any:
    """The task in gymnasium-robotics, whose Ant is v5 by default."""
    scenario, partition = PARTITIONS[task]
    if "Segment" in scenario or "Coupled" in scenario:
        robot = scenario.removeprefix("ManySegment")
        single = (
            make_simulator(task)
            if robot == scenario
            else many_segments(robot, math.prod(map(int, partition.split("x"))))
        )
        nodes, edges, roots = corrected(scenario, *get_parts_and_edges(scenario, partition))
        return mamujoco_v1.parallel_env(
            scenario,
            partition,
            agent_obsk=obsk,
            gym_env=single,
            agent_factorization={"partition": nodes, "edges": edges, "globals": roots},
        )
    if scenario != "Ant" or task.endswith("-v5"):
        return mamujoco_v1.parallel_env(scenario, partition, agent_obsk=obsk)
    return mamujoco_v1.parallel_env(
        scenario,
        partition,
        agent_obsk=obsk,
        gym_env=make_simulator(task),
        local_categories=[["qpos", "qvel"], *[["qpos"]] * (obsk or 0)],
        global_categories=("qpos", "qvel"),
    )


def corrected(scenario: str, partition: list, edges: list, roots: list) -> tuple[list, list, list]:
    """A graph of gymnasium-robotics, with the errors that `segments` lists corrected."""
    nodes = [node for part in partition for node in part]
    if scenario == "ManySegmentAnt":  # sign error; order of the motors; copied nodes in the edges
        for k, node in enumerate(nodes):
            node.qpos_ids = node.qvel_ids = k - len(nodes)
            node.act_ids = k
        named = {node.label: node for node in nodes}
        for edge in edges:
            edge.nodes = {named[node.label] for node in edge.nodes}
    if scenario == "CoupledHalfCheetah":  # indices of the first cheetah; sparse storage of the gradient
        for k, node in enumerate(nodes[:6]):
            node.qpos_ids = node.qvel_ids = 3 + k
        for node in (nodes[0], nodes[6]):
            node.extra_obs["ten_J"] = lambda data: tendon_gradients(data)[0, [0, 1, 9, 10]]
    return partition, edges, roots


def read(data: Any, feature: Feature) -> float:
    """A feature of the simulation in C."""
    category, index = feature
    if category in ("cos", "sin"):
        return getattr(np, category)(data.qpos)[index]
    if category == "to_target":
        return (data.body("fingertip").xpos - data.body("target").xpos)[index]
    if category == "ten_J":
        return tendon_gradients(data).reshape(-1)[index]
    value = getattr(data, category.removesuffix("_clipped")).reshape(-1)[index]
    limit = {"qvel_clipped": 10.0, "cfrc_ext_clipped": 1.0}.get(category, np.inf)
    return np.clip(value, -limit, limit)


@pytest.mark.parametrize("obsk", [0, 1, 2, 5, None])
@pytest.mark.parametrize("task", PARTITIONS)
def test_factorizations_equal_those_of_gymnasium_robotics(task: str, obsk: int | None):
    """States and observations of all agents after some fast steps, and the owners of the actuators."""
    reference = mamujoco(task, obsk)
    reference.reset(seed=0)
    single = reference.single_agent_env.unwrapped
    single.set_state(single.data.qpos, 30.0 * single.data.qvel)  # some velocities are clipped
    act = np.random.default_rng(0)
    for _ in range(3):
        spaces = {agent: reference.action_space(agent) for agent in reference.possible_agents}
        observed, *_ = reference.step(
            {agent: space.high * act.uniform(-1, 1, space.shape) for agent, space in spaces.items()}
        )
    robot, graph = SPLITS[task]
    model = load_model(robot)
    factorization = factorize(model, graph, obsk, robot.categories)
    features = np.array([read(single.data, feature) for feature in factorization.features])
    np.testing.assert_array_equal(features[: factorization.state_dim], reference.state())
    for agent, index in zip(reference.possible_agents, factorization.obs_index, strict=True):
        padded = np.append(features, 0.0)[index]
        np.testing.assert_array_equal(padded[: len(observed[agent])], observed[agent])
        assert (index[len(observed[agent]) :] == len(features)).all()
    assert factorization.obs_index.shape[1] == max(map(len, observed.values()))
    owned = [[node.act_ids for node in agent] for agent in reference.agent_action_partitions]
    assert [[k for k in agent if k < model.nu] for agent in factorization.action_index.tolist()] == owned
    assert factorization.action_index.max() == model.nu if len({*map(len, owned)}) > 1 else model.nu - 1


def test_2halfcheetah_indices():
    factorization = factorize(load_model(HALF_CHEETAH), CHEETAH, 1, HALF_CHEETAH.categories)
    assert factorization.action_index.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert factorization.state_dim == len(factorization.features) == 17
    assert factorization.obs_index.tolist() == [
        [4, 13, 3, 12, 2, 11, 5, 0, 1, 8, 9, 10],
        [7, 16, 6, 15, 5, 14, 2, 0, 1, 8, 9, 10],
    ]


def test_4ant_indices():
    robot, graph = TASKS["4ant"]
    factorization = factorize(load_model(robot), graph, 1, robot.categories)
    root = [0, 1, 2, 3, 4, 13, 14, 15, 16, 17, 18]
    assert factorization.state_dim == len(factorization.features) == 27
    assert factorization.action_index.tolist() == [[2, 3], [4, 5], [6, 7], [0, 1]]
    assert factorization.obs_index.tolist() == [
        [6, 20, 5, 19, 7, 9, 11, *root],
        [8, 22, 7, 21, 5, 9, 11, *root],
        [10, 24, 9, 23, 5, 7, 11, *root],
        [12, 26, 11, 25, 5, 7, 9, *root],
    ]


def test_2halfcheetah_ogmarl_indices():
    """OG-MARL's first MaMuJoCo: feet first, globals as velocities and positions of x, angle, z; feature 17 is x."""
    robot, graph = TASKS["2halfcheetah-ogmarl"]
    factorization = factorize(load_model(robot), graph, 1, robot.categories)
    assert factorization.state_dim == 17
    assert factorization.features[17:] == (("qpos", 0),)
    assert factorization.action_index.tolist() == [[2, 1, 0], [5, 4, 3]]
    assert factorization.obs_index.tolist() == [
        [4, 13, 3, 12, 2, 11, 5, 8, 10, 9, 17, 1, 0],
        [7, 16, 6, 15, 5, 14, 2, 8, 10, 9, 17, 1, 0],
    ]


def test_reachers_that_hide_parts_of_the_state():
    """State: cosines and sines of the joints, target, velocities, offset of the tip (8, 9); 10 means zero."""
    observed = {}
    for task in ("2reacher-notip", "2reacher-first"):
        robot, graph = TASKS[task]
        factorization = factorize(load_model(robot), graph, 1, robot.categories)
        assert factorization.state_dim == len(factorization.features) == 10
        assert factorization.action_index.tolist() == [[0], [1]]
        observed[task] = factorization.obs_index.tolist()
    # Own sine, cosine and velocity, then the target.
    assert observed["2reacher-notip"] == [[2, 0, 6, 4, 5], [3, 1, 7, 4, 5]]
    # The target belongs to the first agent's own features, before the other joint's sine and cosine.
    assert observed["2reacher-first"] == [[2, 0, 6, 4, 5, 3, 1], [3, 1, 7, 2, 0, 10, 10]]


def test_feet_have_one_neighbour_and_padded_observations():
    factorization = factorize(load_model(HALF_CHEETAH), TASKS["6halfcheetah"][1], 1, HALF_CHEETAH.categories)
    # Own position and velocity, two neighbours' positions, five globals; index 17 means zero.
    assert factorization.obs_index.shape == (6, 9)
    assert np.sum(factorization.obs_index == 17, axis=1).tolist() == [0, 0, 1, 0, 0, 1]


def test_a_custom_partition():
    robot, hopper = TASKS["3hopper"]
    graph = hopper._replace(partition=(("foot_joint", "leg_joint"), ("thigh_joint",)))
    factorization = factorize(load_model(robot), graph, 0, robot.categories)
    assert factorization.action_index.tolist() == [[2, 1], [0, 3]]  # there are three actuators: the last action is idle
    # Own positions and velocities by joint name, then z, angle, and three velocities.
    assert factorization.obs_index.tolist() == [[4, 10, 3, 9, 0, 1, 5, 6, 7], [2, 8, 0, 1, 5, 6, 7, 11, 11]]


def test_distance_in_a_joint_graph():
    graph = JointGraph(edges=(("a", "b"), ("b", "c"), ("c", "e", "d")), partition=(), root=())
    assert joints_by_distance(graph, ("b",), 3) == [["b"], ["a", "c"], ["d", "e"], []]
    assert joints_by_distance(graph, ("e", "d"), 1) == [["d", "e"], ["c"]]
    pairs = graph._replace(edges=(("a", "b"), ("b", "c"), *itertools.combinations("cde", 2)))
    assert joints_by_distance(pairs, ("b",), 3) == joints_by_distance(graph, ("b",), 3)
