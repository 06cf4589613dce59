"""From a robot's joint graph to each agent's observations and actions (MaMuJoCo's factorisation).

Joints are the nodes of a hypergraph. An agent owns some of them. It observes its own joints, the joints at graph
distance up to `obsk`, and the global joints, which belong to no agent. An observation consists of *features*: single
entries of the simulator's arrays, such as `("qpos", 3)`. The MuJoCo model gives the indices of a joint's features by
the joint's name; a graph only lists the exceptions of a task.

Order of an agent's observation, as in gymnasium-robotics' `mamujoco_v1`: level by level (own joints, distance 1, ...),
within a level by joint name, within a joint by category; then the globals, category by category.
"""

import types
from collections.abc import Mapping
from typing import NamedTuple

import mujoco
import numpy as np
from jaxtyping import Int

Feature = tuple[str, int]
"""A category, such as `qpos`, and a flat index into that array; `physics.READINGS` lists the categories."""

Span = tuple[str, int, int | None]
"""Consecutive features: category, first index, and end index (None: to the end of the array)."""

_PER_DOF = ("qvel", "qvel_clipped", "qfrc_actuator")
_PER_BODY = {"cinert": 10, "cvel": 6, "cfrc_ext": 6, "cfrc_ext_clipped": 6}
_TENDON_CATEGORIES = ("ten_J", "ten_length", "ten_velocity")


class JointGraph(NamedTuple):
    """The joints of a robot, their neighbours, and their partition among agents."""

    edges: tuple[tuple[str, ...], ...]
    """Hyperedges: all joints of a hyperedge are neighbours."""
    partition: tuple[tuple[str, ...], ...]
    """One tuple of joint names per agent, in the order of its actions."""
    root: tuple[str, ...]
    """Global joints, observed by every agent."""
    bodies: Mapping[str, tuple[int, ...]] = types.MappingProxyType({})
    """By joint: indices of the bodies whose inertia, velocity and forces are observed (some bodies have no name)."""
    views: Mapping[tuple[str, str], tuple[Feature, ...]] = types.MappingProxyType({})
    """By (joint, category): the observed features, where they differ from the joint's own entries of that array."""


class Categories(NamedTuple):
    """The features of the global state, and those that agents observe of joints."""

    state: tuple[Span, ...]
    """The global state, in order. Agents do not observe positions outside the state, except those in `shown`."""
    local: tuple[tuple[str, ...], ...] = (("qpos", "qvel"), ("qpos",))
    """Categories observed of joints at distance 0, 1, ...; the last entry applies to all larger distances."""
    shared: tuple[str, ...] = ("qpos", "qvel")
    """Categories observed of the global joints."""
    shown: tuple[Feature, ...] = ()
    """Positions outside the state that agents observe."""


class Factorization(NamedTuple):
    """Index tables: `obs = features[obs_index]` and `control[action_index] = action`."""

    features: tuple[Feature, ...]
    """The global state, then the features that are only observed."""
    state_dim: int
    """S, the number of features of the state."""
    obs_index: Int[np.ndarray, "A O"]
    """An index past the last feature means zero; it pads the observations of agents with fewer features."""
    action_index: Int[np.ndarray, "A U"]
    """An index past the last actuator means none; it pads agents with fewer joints, so their last actions are idle."""


def joints_by_distance(graph: JointGraph, own: tuple[str, ...], obsk: int) -> list[list[str]]:
    """The joints at graph distance 0, 1, ..., `obsk` from the joints `own`, each level sorted by name."""
    levels = [sorted(own)]
    seen = set(own)
    for _ in range(obsk):
        neighbours = {joint for edge in graph.edges if seen.intersection(edge) for joint in edge}
        levels.append(sorted(neighbours - seen))
        seen |= neighbours
    return levels


def factorize(model: mujoco.MjModel, graph: JointGraph, obsk: int | None, categories: Categories) -> Factorization:
    """Computes the index tables of a task.

    Args:
        model: the MuJoCo model with the named joints and actuators.
        graph: the joint graph with the partition into agents.
        obsk: an agent sees joints up to this graph distance; None for one agent that sees the state and moves all.
        categories: features of the state, and of a joint's observation.
    """
    state = [
        (category, index)
        for category, first, end in categories.state
        for index in range(first, _size(model, category) if end is None else end)
    ]
    if obsk is None:
        return Factorization(
            features=tuple(state),
            state_dim=len(state),
            obs_index=np.arange(len(state))[None],
            action_index=np.arange(model.nu)[None],
        )

    def observation(own: tuple[str, ...]) -> list[Feature]:
        local = [
            (joint, category)
            for distance, joints in enumerate(joints_by_distance(graph, own, obsk))
            for joint in joints
            for category in categories.local[min(distance, len(categories.local) - 1)]
        ]
        shared = [(joint, category) for category in categories.shared for joint in graph.root]
        # A body that several joints share is observed once.
        return [
            feature
            for views in (local, shared)
            for feature in dict.fromkeys(f for view in views for f in _view(model, graph, *view))
            if feature[0] != "qpos" or feature in state or feature in categories.shown
        ]

    observations = [observation(own) for own in graph.partition]
    features = tuple(dict.fromkeys([*state, *(feature for agent in observations for feature in agent)]))
    index_of = {feature: index for index, feature in enumerate(features)}
    actuator_of = {model.joint(model.actuator_trnid[k, 0]).name: k for k in range(model.nu)}
    return Factorization(
        features=features,
        state_dim=len(state),
        obs_index=_padded([[index_of[feature] for feature in agent] for agent in observations], len(features)),
        action_index=_padded([[actuator_of[joint] for joint in own] for own in graph.partition], model.nu),
    )


def _view(model: mujoco.MjModel, graph: JointGraph, joint: str, category: str) -> tuple[Feature, ...]:
    """The observed features of a joint in a category."""
    if (joint, category) in graph.views:
        return graph.views[joint, category]
    if category in _PER_BODY:
        size = _PER_BODY[category]
        return tuple((category, size * body + k) for body in graph.bodies.get(joint, ()) for k in range(size))
    if category in _TENDON_CATEGORIES:
        return ()
    index = model.joint(joint).id
    starts, size = (model.jnt_dofadr, model.nv) if category in _PER_DOF else (model.jnt_qposadr, model.nq)
    end = size if index + 1 == model.njnt else starts[index + 1]
    return tuple((category, k) for k in range(starts[index], end))


def _size(model: mujoco.MjModel, category: str) -> int:
    if category in _PER_BODY:
        return _PER_BODY[category] * model.nbody
    if category in _TENDON_CATEGORIES:
        return model.ntendon * (model.nv if category == "ten_J" else 1)
    return model.nv if category in _PER_DOF else model.nq


def _padded(rows: list[list[int]], value: int) -> Int[np.ndarray, "A _"]:
    width = max(map(len, rows))
    return np.array([row + [value] * (width - len(row)) for row in rows])
