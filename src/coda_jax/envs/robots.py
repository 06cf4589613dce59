"""The robots of MaMuJoCo, as data; `tasks` splits them among agents, `mamujoco` simulates them.

A robot is gymnasium's MuJoCo task: its XML, rewards, resets and ends. Robots of repeated parts come with a split, and
are split by `many_segment_swimmer` and `many_segment_ant` in other ways than the named tasks too. A robot or a split of
your own is built by `mamujoco.build`.
"""

import dataclasses
import math

from coda_jax.envs import segments
from coda_jax.envs.factorization import Categories, JointGraph


@dataclasses.dataclass(frozen=True)
class Start:
    """How a reset departs from the model's initial position at rest."""

    position_noise: float
    """Half width of uniform noise on positions."""
    velocity_noise: float
    """Standard deviation of the noise on velocities where it is normal, else its half width."""
    is_normal: bool = True
    """Whether the noise on velocities is normal, or uniform."""
    target_radius: float | None = None
    """The last two positions are a target at rest, drawn from a disc of this radius around the origin."""


@dataclasses.dataclass(frozen=True)
class Locomotion:
    """Reward for running: speed + alive - costs."""

    control_cost: float
    """Weight of the squared controls."""
    point: str = "root"
    """What has to move: the first coordinate of the `root`, the `torso`'s frame or the centre of `mass`. The latter two
    are as old as MuJoCo's last evaluation of the forces."""
    speed_weight: float = 1.0
    alive: float = 0.0
    """For being healthy."""
    always_alive: bool = False
    """Whether even the step that ends an episode is paid for being healthy."""
    contact_cost: float = 0.0
    """Weight of the squared external forces on all bodies."""
    contact_category: str = "cfrc_ext"
    contact_cost_limit: float = math.inf


@dataclasses.dataclass(frozen=True)
class MeanLocomotion:
    """Reward for several that run side by side: the mean of their speeds less the mean of their squared controls."""

    control_cost: float
    """Weight of the squared controls."""


@dataclasses.dataclass(frozen=True)
class StandUp:
    """Reward for height, over the physics time step, plus 1, less the costs; see `Locomotion`."""

    control_cost: float
    contact_cost: float
    contact_cost_limit: float
    contact_category: str = "cfrc_ext"


@dataclasses.dataclass(frozen=True)
class Reach:
    """Reward for nearness: the negative distance of two bodies, less the squared controls."""

    body: str
    target: str


@dataclasses.dataclass(frozen=True)
class Health:
    """What a robot must be in for an episode to go on."""

    ranges: tuple[tuple[int, float, float], ...]
    """(index into qpos, lowest, highest)."""
    limit: float = math.inf
    """Largest size of any velocity, and of any position after the first two."""


@dataclasses.dataclass(frozen=True)
class Robot:
    """A MuJoCo robot and its task, before it is split among agents."""

    xml: str
    """File name among gymnasium's MuJoCo assets, or a whole document (MJCF)."""
    frame_skip: int
    """Physics steps a control step."""
    place_dims: int
    """Leading entries of qpos that say where the robot is; the physics does not depend on them. The second of a
    pair is moved along."""
    categories: Categories
    start: Start
    reward: Locomotion | MeanLocomotion | StandUp | Reach
    health: Health | None
    """None for a robot whose episodes end by the time limit only."""
    solver_iterations: int = 20
    """Largest number of Newton iterations a physics step. The solver stops by itself, so they cost only where a hard
    landing needs them. Chosen with the two below by `experiments.conformance`."""
    line_search_iterations: int = 4
    """Line search iterations a Newton iteration, of which all are always made."""
    max_contacts: int | None = None
    """Contacts kept for each kind of friction, the deepest; None for all that geoms could have. More than ever touch at
    once cost time and change nothing."""
    episode_length: int = 1000
    """Time limit, in control steps."""


def _state(num_hidden_qpos: int, velocity: str = "qvel") -> Categories:
    """Positions without the leading ones, then velocities."""
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

# OG-MARL's `mamujoco/2halfcheetah` was recorded with the first MaMuJoCo: absolute x, other order.
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
    categories=_state(1, velocity="qvel_clipped"),  # but agents observe velocities as they are
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
    """A long swimmer, rewarded as the short one; see `segments.swimmer`.

    Not among `tasks.TASKS`: single precision suffices for few segments only.
    """
    xml, graph = segments.swimmer(num_agents, segments_per_agent)
    return dataclasses.replace(SWIMMER, xml=xml), graph


def many_segment_ant(num_agents: int, segments_per_agent: int) -> tuple[Robot, JointGraph]:
    """A long ant, observed and rewarded as `4ant-v5`; see `segments.ant`."""
    xml, graph = segments.ant(num_agents, segments_per_agent)
    return dataclasses.replace(ANT_V5, xml=xml, max_contacts=max(40, 4 * num_agents * segments_per_agent)), graph


def coupled_half_cheetah() -> tuple[Robot, JointGraph]:
    """Two half cheetahs on a tendon, whose gradient, length and speed they observe; see `segments.half_cheetahs`."""
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
