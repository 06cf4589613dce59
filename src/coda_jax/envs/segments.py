"""Robots of repeated parts (Peng et al. 2021): long swimmers, ants with many torsos, half cheetahs joined by a tendon.

Their MJCF documents are derived from those of gymnasium's single robots, and come with a joint graph. Models and graphs
are those of gymnasium-robotics' `mamujoco_v1`, except for evident errors there; each function's docstring lists them.
`robots` adds rewards and resets.
"""

import copy
import itertools
import xml.etree.ElementTree as ET

from coda_jax.envs.assets import gymnasium_xml
from coda_jax.envs.factorization import JointGraph


def swimmer(num_agents: int, segments_per_agent: int) -> tuple[str, JointGraph]:
    """A chain of segments, each with a motor to the previous one; every agent moves consecutive segments.

    The first segment, before `rot0`, has no motor: one agent of two segments is gymnasium's swimmer.
    """
    joints = [f"rot{k}" for k in range(num_agents * segments_per_agent)]
    document = ET.parse(gymnasium_xml("swimmer.xml")).getroot()
    body = _find(document, "worldbody/body/body")
    tail = _find(body, "body")
    body.remove(tail)
    _find(body, "joint").set("name", joints[0])
    for k, joint in enumerate(joints[1:], start=1):
        body.append(copy.deepcopy(tail))
        body = body[-1]
        body.set("name", f"mid{k}")
        is_flipped = k % 2 == 0 and joint != joints[-1]  # the axes of neighbours are opposite, except the last
        _find(body, "joint").attrib |= {"name": joint, "axis": "0 0 -1" if is_flipped else "0 0 1"}
    _replace_motors(document, joints)
    graph = JointGraph(edges=tuple(itertools.pairwise(joints)), partition=_partition(joints, num_agents), root=())
    return ET.tostring(document, encoding="unicode"), graph


def ant(num_agents: int, segments_per_agent: int) -> tuple[str, JointGraph]:
    """A row of torsos with two legs each; the first torso has a free joint; every agent moves consecutive torsos.

    Corrects these errors of gymnasium-robotics: its agents observe joints of other torsos (a sign error in the
    indices), the actions of the two legs of a torso are swapped, and agents observe the hips of the previous torso,
    including a copy of their own, but never those of the next torso.
    """
    num_segments = num_agents * segments_per_agent
    document = ET.parse(gymnasium_xml("ant.xml")).getroot()
    document.remove(_find(document, "custom"))  # start positions of the single ant
    torso = _find(document, "worldbody/body")
    front_left, front_right, back, back_right = legs = torso.findall("body")
    for part in (_find(torso, "geom"), *legs):
        torso.remove(part)
    for segment in range(num_segments):
        if segment > 0:
            torso = ET.SubElement(torso, "body", name=f"torso_{segment}", pos="-1 0 0")
            ET.SubElement(torso, "geom", type="capsule", size="0.1", density="100", fromto="1 0 0 0 0 0")
        for side, leg in enumerate((front_left, back_right) if segment == 0 else (front_right, back), start=1):
            leg = copy.deepcopy(leg)
            torso.append(leg)
            upper = _find(leg, "body")
            if segment > 0:  # perpendicular to the spine
                _, y, _ = upper.get("pos", "").split()
                upper.set("pos", f"0 {y} 0")
                _find(leg, "geom").set("fromto", f"0 0 0 0 {y} 0")
            _append_to_names(leg, f"_{segment}")
            for joint, name in zip(leg.iter("joint"), ("hip", "ankle"), strict=True):
                joint.set("name", f"{name}{side}_{segment}")
    joints = [joint.attrib["name"] for joint in document.iter("joint") if joint.get("type") == "hinge"]
    _replace_motors(document, joints)
    segments = [joints[4 * segment : 4 * segment + 4] for segment in range(num_segments)]
    edges, bodies = [], {}
    for segment, (hip1, ankle1, hip2, ankle2) in enumerate(segments):
        edges += [(ankle1, hip1), (ankle2, hip2), (hip1, hip2)]
        if segment > 0:
            edges.append((segments[segment - 1][0], segments[segment - 1][2], hip1, hip2))
        torso_id = 1 + 7 * segment  # followed by two legs of three bodies each
        for hip, ankle, leg_id in ((hip1, ankle1, torso_id + 1), (hip2, ankle2, torso_id + 4)):
            bodies |= {hip: (torso_id, leg_id), ankle: (leg_id, leg_id + 1, leg_id + 2)}
    graph = JointGraph(edges=tuple(edges), partition=_partition(joints, num_agents), root=("root",), bodies=bodies)
    return ET.tostring(document, encoding="unicode"), graph


def half_cheetahs() -> tuple[str, JointGraph]:
    """Two half cheetahs side by side, their torsos joined by an elastic tendon; each agent moves one of them.

    Corrects an error of gymnasium-robotics, where both agents observe the joints of the second cheetah.
    """
    document = ET.parse(gymnasium_xml("half_cheetah.xml")).getroot()
    world, motors = _find(document, "worldbody"), _find(document, "actuator")
    single = _find(world, "body")
    single_motors = list(motors)
    world.remove(single)
    motors.clear()
    tendon = ET.SubElement(
        ET.SubElement(document, "tendon"),
        "spatial",
        {"limited": "true", "range": "1.5 3.5", "stiffness": "0.1", "width": "0.05", "rgba": "0.9 0.3 0.3 1"},
    )
    for k, y in enumerate(("-1", "1")):
        x, _, z = single.get("pos", "").split()
        cheetah = copy.deepcopy(single)
        _append_to_names(cheetah, str(k))
        cheetah.set("pos", f"{x} {y} {z}")
        ET.SubElement(cheetah, "site", name=f"spine{k}")
        ET.SubElement(tendon, "site", site=f"spine{k}")
        world.append(cheetah)
        for motor in single_motors:
            ET.SubElement(
                motors, "motor", motor.attrib | {name: f"{motor.attrib[name]}{k}" for name in ("joint", "name")}
            )
    _find(world, "body/camera").set("name", "track")
    # The tendon pulls along x and z: the entries of its gradient for the positions of the two torsos.
    tendon_views = {
        "ten_J": (("ten_J", 0), ("ten_J", 1), ("ten_J", 9), ("ten_J", 10)),
        "ten_length": (("ten_length", 0),),
        "ten_velocity": (("ten_velocity", 0),),
    }
    chain = ("bfoot", "bshin", "bthigh", "fthigh", "fshin", "ffoot")
    graph = JointGraph(
        edges=tuple((f"{a}{k}", f"{b}{k}") for k in (0, 1) for a, b in itertools.pairwise(chain)),
        partition=_partition([motor.attrib["joint"] for motor in motors], 2),
        root=tuple(f"root{axis}{k}" for k in (0, 1) for axis in "xyz"),
        views={(f"bthigh{k}", category): view for k in (0, 1) for category, view in tendon_views.items()},
    )
    return ET.tostring(document, encoding="unicode"), graph


def _find(element: ET.Element, path: str) -> ET.Element:
    found = element.find(path)
    if found is None:
        raise ValueError(f"gymnasium's document has no {path} in its {element.tag}")
    return found


def _append_to_names(part: ET.Element, suffix: str) -> None:
    for element in part.iter():
        if "name" in element.attrib:
            element.attrib["name"] += suffix


def _replace_motors(document: ET.Element, joints: list[str]) -> None:
    """Replaces the motors by one per joint, with the attributes of the document's first motor."""
    motors = _find(document, "actuator")
    attributes = motors[0].attrib
    motors.clear()
    for joint in joints:
        ET.SubElement(motors, "motor", attributes | {"joint": joint})


def _partition(joints: list[str], num_agents: int) -> tuple[tuple[str, ...], ...]:
    """Splits the joints into runs of equal length, one per agent."""
    size = len(joints) // num_agents
    return tuple(tuple(joints[k : k + size]) for k in range(0, len(joints), size))
