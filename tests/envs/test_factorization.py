"""How a robot is split, against gymnasium-robotics, where the graphs and indices are typed in."""

import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium_robotics import mamujoco_v1

from coda_jax.envs.factorization import Factorization, JointGraph, factorize, joints_by_distance
from coda_jax.envs.mamujoco import HALF_CHEETAH, TASKS, load_model

CHEETAH = TASKS["2halfcheetah"][1]
CHEETAH_6X1 = CHEETAH._replace(partition=tuple((joint,) for agent in CHEETAH.partition for joint in agent))
LEGS = tuple((f"hip_{k}", f"ankle_{k}") for k in (1, 2, 3, 4))
ANT_4X2 = JointGraph(edges=(*LEGS, tuple(hip for hip, _ in LEGS)), partition=LEGS, root=("root",))


def check(split: Factorization, reference: Any) -> None:
    """Compares observations of a random state, whose entries all differ, and the owners of the actuators."""
    seen, _ = reference.reset(seed=0)
    state = reference.state()
    assert len(np.unique(state)) == len(state)
    for agent, index in zip(reference.possible_agents, split.obs_index, strict=True):
        padded = np.append(state, 0.0)[index]
        np.testing.assert_array_equal(padded[: len(seen[agent])], seen[agent])
        assert not padded[len(seen[agent]) :].any()
    assert split.obs_index.shape[1] == max(map(len, seen.values()))
    owned = [[node.act_ids for node in agent] for agent in reference.agent_action_partitions]
    assert split.action_index.tolist() == owned


@pytest.mark.parametrize("obsk", [0, 1, 2, 5])
@pytest.mark.parametrize("name, graph", [("2x3", CHEETAH), ("6x1", CHEETAH_6X1)])
def test_half_cheetah_is_split_as_in_gymnasium_robotics(name: str, graph: JointGraph, obsk: int):
    reference = mamujoco_v1.parallel_env("HalfCheetah", name, agent_obsk=obsk)
    check(factorize(load_model(HALF_CHEETAH), graph, obsk, num_hidden_qpos=1), reference)


@pytest.mark.filterwarnings("ignore:.*Ant-v4 is out of date:DeprecationWarning")  # the public datasets are of v4
@pytest.mark.parametrize("obsk", [0, 1, 2])
def test_a_free_joint_and_a_hyperedge(obsk: int):
    single = gymnasium.make("Ant-v4")
    reference = mamujoco_v1.parallel_env(
        "Ant",
        "4x2",
        agent_obsk=obsk,
        gym_env=single,
        local_categories=[["qpos", "qvel"], ["qpos"], ["qpos"]],
        global_categories=("qpos", "qvel"),
    )
    check(factorize(single.unwrapped.model, ANT_4X2, obsk, num_hidden_qpos=2), reference)


def test_two_half_cheetahs_by_hand():
    split = factorize(load_model(HALF_CHEETAH), CHEETAH, obsk=1, num_hidden_qpos=1)
    assert split.action_index.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert split.obs_index.tolist() == [
        [4, 13, 3, 12, 2, 11, 5, 0, 1, 8, 9, 10],
        [7, 16, 6, 15, 5, 14, 2, 0, 1, 8, 9, 10],
    ]


def test_feet_see_one_neighbour_and_are_padded():
    split = factorize(load_model(HALF_CHEETAH), CHEETAH_6X1, obsk=1, num_hidden_qpos=1)
    # Own position and velocity, two neighbours' positions, five globals; an index of 17 stands for zero.
    assert split.obs_index.shape == (6, 9)
    assert np.sum(split.obs_index == 17, axis=1).tolist() == [0, 0, 1, 0, 0, 1]


def test_distance_in_a_joint_graph():
    graph = JointGraph(edges=(("a", "b"), ("b", "c"), ("c", "e", "d")), partition=(), root=())
    assert joints_by_distance(graph, ("b",), 3) == [["b"], ["a", "c"], ["d", "e"], []]
    assert joints_by_distance(graph, ("e", "d"), 1) == [["d", "e"], ["c"]]
    pairs = graph._replace(edges=(("a", "b"), ("b", "c"), *itertools.combinations("cde", 2)))
    assert joints_by_distance(pairs, ("b",), 3) == joints_by_distance(graph, ("b",), 3)
