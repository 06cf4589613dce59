"""The tasks of MaMuJoCo, as data: robots and the partition of their joints among agents.

A task's name is the number of agents and the robot: `2halfcheetah`, `4ant`, `3hopper`. The partition is that of
gymnasium-robotics' `mamujoco_v1`. Where gymnasium's versions differ, the plain name is the version of the published
datasets: `4ant` is v4; `4ant-v5` has contact forces in the observations and in the reward. `2reacher-notip` and
`2reacher-first` hide parts of the state from the agents, as in the coordination tasks of Barde et al. (2024).
"""

from coda_jax.envs.factorization import JointGraph
from coda_jax.envs.robots import (
    ANT,
    ANT_V5,
    HALF_CHEETAH,
    HALF_CHEETAH_OGMARL,
    HOPPER,
    HUMANOID,
    HUMANOID_STANDUP,
    REACHER,
    SWIMMER,
    WALKER,
    Robot,
    coupled_half_cheetah,
    many_segment_ant,
)

_HALF_CHEETAH = JointGraph(
    edges=(("bfoot", "bshin"), ("bshin", "bthigh"), ("bthigh", "fthigh"), ("fthigh", "fshin"), ("fshin", "ffoot")),
    partition=(("bthigh", "bshin", "bfoot"), ("fthigh", "fshin", "ffoot")),
    root=("rootx", "rootz", "rooty"),
)

_LEGS = tuple((f"hip_{k}", f"ankle_{k}") for k in (1, 2, 3, 4))

_ANT = JointGraph(
    edges=(*_LEGS, tuple(hip for hip, _ in _LEGS)),
    partition=_LEGS,
    root=("root",),
    bodies={  # 1 is the torso; a leg is three consecutive bodies
        **{f"hip_{k}": (1, 3 * k - 1) for k in (1, 2, 3, 4)},
        **{f"ankle_{k}": (3 * k - 1, 3 * k, 3 * k + 1) for k in (1, 2, 3, 4)},
    },
)
_ANT_2X4 = _ANT._replace(partition=(_LEGS[0] + _LEGS[1], _LEGS[2] + _LEGS[3]))
_ANT_2X4D = _ANT._replace(partition=(_LEGS[0] + _LEGS[3], _LEGS[1] + _LEGS[2]))

_HOPPER = JointGraph(
    edges=(("foot_joint", "leg_joint"), ("leg_joint", "thigh_joint")),
    partition=(("thigh_joint",), ("leg_joint",), ("foot_joint",)),
    root=("rootx", "rootz", "rooty"),
)

_WALKER = JointGraph(
    edges=(
        ("foot_joint", "leg_joint"),
        ("leg_joint", "thigh_joint"),
        ("foot_left_joint", "leg_left_joint"),
        ("leg_left_joint", "thigh_left_joint"),
        ("thigh_joint", "thigh_left_joint"),
    ),
    partition=(
        ("foot_joint", "leg_joint", "thigh_joint"),
        ("foot_left_joint", "leg_left_joint", "thigh_left_joint"),
    ),
    root=("rootx", "rootz", "rooty"),
)

_SWIMMER = JointGraph(
    edges=(("motor1_rot", "motor2_rot"),),
    partition=(("motor1_rot",), ("motor2_rot",)),
    root=("free_body_rot",),
    views={  # the two agents also share the velocity of the tip
        ("motor1_rot", "qvel"): (("qvel", 0), ("qvel", 3)),
        ("motor2_rot", "qvel"): (("qvel", 1), ("qvel", 4)),
    },
)

_REACHER = JointGraph(
    edges=(("joint0", "joint1"),),
    partition=(("joint0",), ("joint1",)),
    root=("target_x", "target_y"),
    views={
        ("joint0", "qpos"): (("sin", 0), ("cos", 0)),
        ("joint1", "qpos"): (("sin", 1), ("cos", 1)),
        ("joint0", "to_target"): (),
        ("joint1", "to_target"): (("to_target", 0), ("to_target", 1), ("to_target", 2)),
        ("target_x", "qvel"): (),
        ("target_y", "qvel"): (),
    },
)

# Two tasks of Barde et al. (2024, MOMA-PPO). "2x1notip": an agent observes its own joint and the target's position.
_REACHER_NOTIP = _REACHER._replace(edges=(), views={**_REACHER.views, ("joint1", "to_target"): ()})
# "2x1first": the first agent observes its joint, the other's angle and the target; the second both joints' angles.
_REACHER_FIRST = _REACHER._replace(
    root=(),
    views={
        ("joint0", "qpos"): _REACHER.views["joint0", "qpos"],
        ("joint1", "qpos"): _REACHER.views["joint1", "qpos"],
        ("joint0", "to_target"): (("qpos", 2), ("qpos", 3)),
        ("joint1", "to_target"): (),
    },
)

_ABDOMEN = ("abdomen_x", "abdomen_y", "abdomen_z")
_LEFT_HIP, _RIGHT_HIP = (tuple(f"{side}_hip_{axis}" for axis in "xyz") for side in ("left", "right"))
_LEFT_SHOULDER, _RIGHT_SHOULDER = (tuple(f"{side}_shoulder{k}" for k in (1, 2)) for side in ("left", "right"))

_HUMANOID = JointGraph(
    edges=(
        _ABDOMEN,
        _RIGHT_HIP,
        _LEFT_HIP,
        ("left_elbow", *_LEFT_SHOULDER),
        ("right_elbow", *_RIGHT_SHOULDER),
        ("left_knee", *_LEFT_HIP),
        ("right_knee", *_RIGHT_HIP),
        _LEFT_SHOULDER + _ABDOMEN,
        _RIGHT_SHOULDER + _ABDOMEN,
        _ABDOMEN + _LEFT_HIP,
        _ABDOMEN + _RIGHT_HIP,
    ),
    partition=(  # the upper and the lower body
        (*_ABDOMEN, *_RIGHT_SHOULDER, "right_elbow", *_LEFT_SHOULDER, "left_elbow"),
        (*_RIGHT_HIP, "right_knee", *_LEFT_HIP, "left_knee"),
    ),
    root=("root",),
    bodies={  # 1 torso, 2 waist, 3 pelvis; right leg 4 to 6, left leg 7 to 9; right arm 10, 11, left arm 12, 13
        "abdomen_y": (1, 2, 3),
        "abdomen_z": (1, 2, 3),
        "abdomen_x": (3, 4, 7),
        **dict.fromkeys(_RIGHT_HIP, (4, 5)),
        "right_knee": (5, 6),
        **dict.fromkeys(_LEFT_HIP, (7, 8)),
        "left_knee": (8, 9),
        **dict.fromkeys(_RIGHT_SHOULDER, (1, 10, 11)),
        "right_elbow": (11,),
        **dict.fromkeys(_LEFT_SHOULDER, (1, 12, 13)),
        "left_elbow": (13,),
    },
    views={  # gymnasium-robotics has the names of these two abdominal joints swapped
        ("abdomen_y", "qpos"): (("qpos", 7),),
        ("abdomen_z", "qpos"): (("qpos", 8),),
        **{("abdomen_y", velocity): ((velocity, 6),) for velocity in ("qvel", "qfrc_actuator")},
        **{("abdomen_z", velocity): ((velocity, 7),) for velocity in ("qvel", "qfrc_actuator")},
    },
)

TASKS: dict[str, tuple[Robot, JointGraph]] = {
    "2halfcheetah": (HALF_CHEETAH, _HALF_CHEETAH),
    "6halfcheetah": (
        HALF_CHEETAH,
        _HALF_CHEETAH._replace(partition=tuple((joint,) for agent in _HALF_CHEETAH.partition for joint in agent)),
    ),
    "2halfcheetah-ogmarl": (
        HALF_CHEETAH_OGMARL,
        _HALF_CHEETAH._replace(
            partition=(("bfoot", "bshin", "bthigh"), ("ffoot", "fshin", "fthigh")), root=("rootx", "rooty", "rootz")
        ),
    ),
    "4ant": (ANT, _ANT),
    "2ant": (ANT, _ANT_2X4),
    "2antd": (ANT, _ANT_2X4D),
    "4ant-v5": (ANT_V5, _ANT),
    "2ant-v5": (ANT_V5, _ANT_2X4),
    "2antd-v5": (ANT_V5, _ANT_2X4D),
    "3hopper": (HOPPER, _HOPPER),
    "2walker": (WALKER, _WALKER),
    "2swimmer": (SWIMMER, _SWIMMER),
    "2reacher": (REACHER, _REACHER),
    "2reacher-notip": (REACHER, _REACHER_NOTIP),
    "2reacher-first": (REACHER, _REACHER_FIRST),
    "2humanoid": (HUMANOID, _HUMANOID),
    "2humanoidstandup": (HUMANOID_STANDUP, _HUMANOID),
    "2manysegmentant": many_segment_ant(2, 3),
    "2coupledhalfcheetah": coupled_half_cheetah(),
}
