"""From a robot's joint graph to what each agent observes and moves (MaMuJoCo's factorisation).

Joints are the nodes of a hypergraph. An agent owns some of them and observes, besides its own, the joints at graph
distance up to `obsk`, and the global joints that belong to no agent. Positions of joints in the state and in the joint
action come from the MuJoCo model, by name; no index is typed in.

Order of an agent's observation, as in gymnasium-robotics' `mamujoco_v1`: level by level (own joints, distance 1, ...),
within a level by joint name, within a joint by category; then the globals, category by category.
"""

from typing import NamedTuple

import mujoco
import numpy as np
from jaxtyping import Int


class JointGraph(NamedTuple):
    """The joints of a robot, who neighbours whom, and how they are shared out among agents."""

    edges: tuple[tuple[str, ...], ...]
    """Hyperedges: the joints of one hyperedge are all neighbours of each other."""
    partition: tuple[tuple[str, ...], ...]
    """One tuple of joint names an agent, in the order of its actions."""
    root: tuple[str, ...]
    """Global joints, observed by every agent."""


class Factorization(NamedTuple):
    """Index tables: `obs = state[obs_index]` and `control[action_index] = action`."""

    obs_index: Int[np.ndarray, "A O"]
    """An index of S, beyond the state, stands for zero: agents that see less than others are padded with it."""
    action_index: Int[np.ndarray, "A U"]


def joints_by_distance(graph: JointGraph, own: tuple[str, ...], obsk: int) -> list[list[str]]:
    """The joints at graph distance 0, 1, ..., `obsk` from the joints `own`, each level sorted by name."""
    levels = [sorted(own)]
    seen = set(own)
    for _ in range(obsk):
        neighbours = {joint for edge in graph.edges if seen.intersection(edge) for joint in edge}
        levels.append(sorted(neighbours - seen))
        seen |= neighbours
    return levels


def factorize(model: mujoco.MjModel, graph: JointGraph, obsk: int, num_hidden_qpos: int) -> Factorization:
    """Computes the index tables of a task.

    Args:
        model: the MuJoCo model that names the joints and actuators.
        graph: the joint graph with the partition into agents.
        obsk: an agent sees joints up to this graph distance: with velocity its own, by position only the others.
        num_hidden_qpos: leading entries of qpos that the state leaves out; the state is qpos without them, then qvel.
    """
    first_qvel = model.nq - num_hidden_qpos
    state_dim = first_qvel + model.nv

    def addresses(joint: str, category: str) -> list[int]:
        """Where the joint's positions or velocities stand in the state."""
        index = model.joint(joint).id
        is_last = index + 1 == model.njnt
        if category == "qpos":
            end = model.nq if is_last else model.jnt_qposadr[index + 1]
            return [q - num_hidden_qpos for q in range(model.jnt_qposadr[index], end) if q >= num_hidden_qpos]
        end = model.nv if is_last else model.jnt_dofadr[index + 1]
        return [first_qvel + v for v in range(model.jnt_dofadr[index], end)]

    def observation(own: tuple[str, ...]) -> list[int]:
        local = [
            address
            for distance, joints in enumerate(joints_by_distance(graph, own, obsk))
            for joint in joints
            for category in (("qpos", "qvel") if distance == 0 else ("qpos",))
            for address in addresses(joint, category)
        ]
        shared = [a for category in ("qpos", "qvel") for joint in graph.root for a in addresses(joint, category)]
        return local + shared

    actuator_of = {model.joint(model.actuator_trnid[k, 0]).name: k for k in range(model.nu)}
    seen = [observation(own) for own in graph.partition]
    obs_dim = max(map(len, seen))
    return Factorization(
        obs_index=np.array([index + [state_dim] * (obs_dim - len(index)) for index in seen]),
        action_index=np.array([[actuator_of[joint] for joint in own] for own in graph.partition]),
    )
