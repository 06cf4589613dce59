"""The robots of MaMuJoCo, as data; `tasks` splits them among agents, `mamujoco` simulates them.

A robot is a MuJoCo task of gymnasium: XML, reward, reset distribution and termination. Robots of repeated parts come
with a joint graph; `many_segment_swimmer` and `many_segment_ant` also build sizes that are not among the named tasks.
`mamujoco.build` builds a task from any robot and joint graph.
"""

import dataclasses
import math

from coda_jax.envs import segments
from coda_jax.envs.factorization import Categories, JointGraph


@dataclasses.dataclass(frozen=True)
class Start:
    """The reset distribution: noise around the model's initial position at rest."""

    position_noise: float
    """Half width of uniform noise on positions."""
    velocity_noise: float
    """Standard deviation of normal noise on velocities, or half width of uniform noise."""
    is_normal: bool = True
    """Whether the noise on velocities is normal (else uniform)."""
    target_radius: float | None = None
    """If given, the last two positions are a target at rest, drawn from a disc of this radius around the origin."""


@dataclasses.dataclass(frozen=True)
class Locomotion:
    """Reward for locomotion: speed + alive - costs."""

    control_cost: float
    """Weight of the squared controls."""
    point: str = "root"
    """The point whose speed along x is rewarded: the `root`, the `torso`'s frame or the centre of `mass`. The latter
    two are those at MuJoCo's last evaluation of the forces."""
    speed_weight: float = 1.0
    alive: float = 0.0
    """Reward for being healthy."""
    always_alive: bool = False
    """Whether the step that ends an episode also gets the reward for being healthy."""
    contact_cost: float = 0.0
    """Weight of the squared external forces on all bodies."""
    contact_category: str = "cfrc_ext"
    contact_cost_limit: float = math.inf


@dataclasses.dataclass(frozen=True)
class MeanLocomotion:
    """Reward for several robots side by side: mean speed minus the weighted mean of their squared controls."""

    control_cost: float
    """Weight of the squared controls."""


@dataclasses.dataclass(frozen=True)
class StandUp:
    """Reward for height: height / physics time step + 1 - costs; see `Locomotion`."""

    control_cost: float
    contact_cost: float
    contact_cost_limit: float
    contact_category: str = "cfrc_ext"


@dataclasses.dataclass(frozen=True)
class Reach:
    """Reward for reaching: minus the distance of two bodies, minus the squared controls."""

    body: str
    target: str


@dataclasses.dataclass(frozen=True)
class Health:
    """The conditions of a healthy robot; an episode terminates where one is violated."""

    ranges: tuple[tuple[int, float, float], ...]
    """(index into qpos, lower bound, upper bound)."""
    limit: float = math.inf
    """Bound on the magnitude of all velocities, and of all positions after the first two."""


@dataclasses.dataclass(frozen=True)
class Robot:
    """A MuJoCo robot and its task, before its joints are divided among agents.

    The cache key of the named datasets contains the repr of a robot, so a renamed field rebuilds them.
    """

    xml: str
    """File name of one of gymnasium's MuJoCo assets, or a complete MJCF document."""
    frame_skip: int
    """Physics steps per control step."""
    place_dims: int
    """Leading entries of qpos that are the root position; the dynamics do not depend on them. For a pair, those of the
    first robot."""
    categories: Categories
    start: Start
    reward: Locomotion | MeanLocomotion | StandUp | Reach
    health: Health | None
    """None if episodes end by the time limit only."""
    solver_iterations: int = 20
    """Maximum number of Newton iterations per physics step. The solver stops when it has converged, so more iterations
    cost time only in hard landings. This and the next two are chosen by `experiments.conformance`."""
    line_search_iterations: int = 4
    """Line search iterations per Newton iteration; all of them are always computed."""
    max_contacts: int | None = None
    """Contacts kept per friction dimension, deepest first; None for all pairs of geoms. A limit above the number of
    simultaneous contacts costs time and does not change the result."""
    episode_length: int = 1000
    """Time limit, in control steps."""


def _state(num_hidden_qpos: int, velocity: str = "qvel") -> Categories:
    """A state of the positions without the leading ones, then the velocities."""
    return Categories(state=(("qpos", num_hidden_qpos, None), (velocity, 0, None)))


HALF_CHEETAH = Robot(
    xml="half_cheetah.xml",
    frame_skip=5,
    place_dims=1,
    categories=_state(1),
    start=Start(position_noise=0.1, velocity_noise=0.1),
    reward=Locomotion(control_cost=0.1),
    health=None,
)

# OG-MARL's `mamujoco/2halfcheetah` was recorded with the first MaMuJoCo: x is observed, and the order differs.
HALF_CHEETAH_OGMARL = dataclasses.replace(
    HALF_CHEETAH, categories=HALF_CHEETAH.categories._replace(shared=("qvel", "qpos"), shown=(("qpos", 0),))
)

ANT = Robot(
    xml="ant.xml",
    frame_skip=5,
    place_dims=2,
    categories=_state(2),
    start=Start(position_noise=0.1, velocity_noise=0.1),
    reward=Locomotion(point="torso", control_cost=0.5, alive=1.0, always_alive=True),
    health=Health(ranges=((2, 0.2, 1.0),)),
    max_contacts=10,
)

ANT_V5 = dataclasses.replace(
    ANT,
    categories=Categories(
        state=(("qpos", 2, None), ("qvel", 0, None), ("cfrc_ext_clipped", 6, None)),
        local=(("qpos", "qvel", "cfrc_ext_clipped"), ("qpos",)),
    ),
    reward=Locomotion(
        point="torso", control_cost=0.5, alive=1.0, contact_cost=5e-4, contact_category="cfrc_ext_clipped"
    ),
)

HOPPER = Robot(
    xml="hopper.xml",
    frame_skip=4,
    place_dims=1,
    categories=Categories(
        state=(("qpos", 1, None), ("qvel_clipped", 0, None)),
        local=(("qpos", "qvel_clipped"), ("qpos",)),
        shared=("qpos", "qvel_clipped"),
    ),
    start=Start(position_noise=5e-3, velocity_noise=5e-3, is_normal=False),
    reward=Locomotion(control_cost=1e-3, alive=1.0),
    health=Health(ranges=((1, 0.7, math.inf), (2, -0.2, 0.2)), limit=100.0),
)

WALKER = Robot(
    xml="walker2d_v5.xml",
    frame_skip=4,
    place_dims=1,
    categories=_state(1, velocity="qvel_clipped"),  # agents observe the unclipped velocities
    start=Start(position_noise=5e-3, velocity_noise=5e-3, is_normal=False),
    reward=Locomotion(control_cost=1e-3, alive=1.0),
    health=Health(ranges=((1, 0.8, 2.0), (2, -1.0, 1.0))),
)

SWIMMER = Robot(
    xml="swimmer.xml",
    frame_skip=4,
    place_dims=2,
    categories=_state(2),
    start=Start(position_noise=0.1, velocity_noise=0.1, is_normal=False),
    reward=Locomotion(control_cost=1e-4),
    health=None,
)

REACHER = Robot(
    xml="reacher.xml",
    frame_skip=2,
    place_dims=0,
    categories=Categories(
        state=(("cos", 0, 2), ("sin", 0, 2), ("qpos", 2, 4), ("qvel", 0, 2), ("to_target", 0, 2)),
        local=(("qpos", "qvel", "to_target"), ("qpos",)),
    ),
    start=Start(position_noise=0.1, velocity_noise=5e-3, is_normal=False, target_radius=0.2),
    reward=Reach(body="fingertip", target="target"),
    health=None,
    episode_length=50,
)

_HUMANOID_LOCAL = ("qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")

HUMANOID = Robot(
    xml="humanoid.xml",
    frame_skip=5,
    place_dims=2,
    categories=Categories(
        state=(
            ("qpos", 2, None),
            ("qvel", 0, None),
            ("cinert", 10, None),
            ("cvel", 6, None),
            ("qfrc_actuator", 6, None),
            ("cfrc_ext", 6, None),
        ),
        local=(_HUMANOID_LOCAL, ("qpos",)),
    ),
    start=Start(position_noise=1e-2, velocity_noise=1e-2, is_normal=False),
    reward=Locomotion(
        point="mass", speed_weight=1.25, control_cost=0.1, alive=5.0, contact_cost=5e-7, contact_cost_limit=10.0
    ),
    health=Health(ranges=((2, 1.0, 2.0),)),
    max_contacts=16,
)

HUMANOID_STANDUP = dataclasses.replace(
    HUMANOID,
    xml="humanoidstandup.xml",
    reward=StandUp(control_cost=0.1, contact_cost=5e-7, contact_cost_limit=10.0),
    health=None,
)


def many_segment_swimmer(num_agents: int, segments_per_agent: int) -> tuple[Robot, JointGraph]:
    """A long swimmer, with the reward of the short one; see `segments.swimmer`.

    Not in `tasks.TASKS`: single precision is sufficient for few segments only.
    """
    xml, graph = segments.swimmer(num_agents, segments_per_agent)
    return dataclasses.replace(SWIMMER, xml=xml), graph


def many_segment_ant(num_agents: int, segments_per_agent: int) -> tuple[Robot, JointGraph]:
    """A long ant, with the observations and reward of `4ant-v5`; see `segments.ant`."""
    xml, graph = segments.ant(num_agents, segments_per_agent)
    return dataclasses.replace(ANT_V5, xml=xml, max_contacts=max(40, 4 * num_agents * segments_per_agent)), graph


def coupled_half_cheetah() -> tuple[Robot, JointGraph]:
    """Two half cheetahs joined by a tendon, whose length, rate and gradient are observed; see `segments`."""
    xml, graph = segments.half_cheetahs()
    robot = dataclasses.replace(
        HALF_CHEETAH,
        xml=xml,
        categories=Categories(
            state=(
                ("qpos", 1, 9),
                ("qpos", 10, 18),
                ("qvel", 0, None),
                ("ten_J", 0, 2),
                ("ten_J", 9, 11),
                ("ten_length", 0, None),
                ("ten_velocity", 0, None),
            ),
            local=(("qpos", "qvel", "ten_J", "ten_length", "ten_velocity"), ("qpos",)),
        ),
        reward=MeanLocomotion(control_cost=0.1),
    )
    return robot, graph
