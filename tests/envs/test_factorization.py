"""Index tables against gymnasium-robotics, which computes them from graphs typed in by its authors."""

import functools
import itertools

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium_robotics import mamujoco_v1

from coda_jax.envs.factorization import Factorization, JointGraph, factorize, joints_by_distance
from coda_jax.envs.mamujoco import HALF_CHEETAH, TASKS, load_model

CHEETAH = TASKS["2halfcheetah"][1]
CHEETAH_6X1 = CHEETAH._replace(partition=tuple((joint,) for agent in CHEETAH.partition for joint in agent))
LEGS = tuple((f"hip_{k}", f"ankle_{k}") for k in (1, 2, 3, 4))
ANT_4X2 = JointGraph(
    edges=(*LEGS, *itertools.combinations((hip for hip, _ in LEGS), 2)), partition=LEGS, root=("root",)
)


@functools.cache
def model(robot: str) -> mujoco.MjModel:
    return gymnasium.make("Ant-v4").unwrapped.model if robot == "Ant" else load_model(HALF_CHEETAH)


def tables(parallel_env) -> tuple[list[list[int]], list[list[int]]]:
    """The reference's index tables, one list an agent."""
    obs = parallel_env.observation_factorization
    return (
        [list(obs[agent]) for agent in parallel_env.possible_agents],
        [[node.act_ids for node in agent] for agent in parallel_env.agent_action_partitions],
    )


def unpadded(split: Factorization, state_dim: int) -> list[list[int]]:
    rows = [[index for index in row if index != state_dim] for row in split.obs_index.tolist()]
    # Padding is at the end only.
    assert all(row == padded[: len(row)] for row, padded in zip(rows, split.obs_index.tolist(), strict=True))
    return rows


@pytest.mark.parametrize("obsk", [0, 1, 2, 5])
@pytest.mark.parametrize("name, graph", [("2x3", CHEETAH), ("6x1", CHEETAH_6X1)])
def test_half_cheetah_is_split_as_in_gymnasium_robotics(name: str, graph: JointGraph, obsk: int):
    reference = mamujoco_v1.parallel_env("HalfCheetah", name, agent_obsk=obsk)
    split = factorize(model("HalfCheetah"), graph, obsk, num_hidden_qpos=1)
    assert (unpadded(split, state_dim=17), split.action_index.tolist()) == tables(reference)


@pytest.mark.parametrize("obsk", [0, 1, 2])
def test_a_robot_with_a_free_joint_and_hyperedges_is_split_too(obsk: int):
    reference = mamujoco_v1.parallel_env(
        "Ant",
        "4x2",
        agent_obsk=obsk,
        gym_env=gymnasium.make("Ant-v4"),
        local_categories=[["qpos", "qvel"], ["qpos"], ["qpos"]],
        global_categories=("qpos", "qvel"),
    )
    split = factorize(model("Ant"), ANT_4X2, obsk, num_hidden_qpos=2)
    assert (unpadded(split, state_dim=27), split.action_index.tolist()) == tables(reference)


def test_two_half_cheetahs_by_hand():
    split = factorize(model("HalfCheetah"), CHEETAH, obsk=1, num_hidden_qpos=1)
    assert split.action_index.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert split.obs_index.tolist() == [
        [4, 13, 3, 12, 2, 11, 5, 0, 1, 8, 9, 10],
        [7, 16, 6, 15, 5, 14, 2, 0, 1, 8, 9, 10],
    ]


def test_ends_of_a_chain_see_less_and_are_padded():
    split = factorize(model("HalfCheetah"), CHEETAH_6X1, obsk=1, num_hidden_qpos=1)
    # Own position and velocity, one or two neighbours' positions, five globals; the feet stand at the ends.
    assert split.obs_index.shape == (6, 9)
    assert np.sum(split.obs_index == 17, axis=1).tolist() == [0, 0, 1, 0, 0, 1]


def test_distance_in_a_joint_graph():
    chain = JointGraph(edges=(("a", "b"), ("b", "c"), ("c", "d", "e")), partition=(), root=())
    assert joints_by_distance(chain, ("b",), 3) == [["b"], ["a", "c"], ["d", "e"], []]
    assert joints_by_distance(chain, ("e", "d"), 1) == [["d", "e"], ["c"]]
