"""Offline data of the two-agent Reacher: teams whose convention is the side to which the elbow bends.

A target inside the arm's reach can be touched in two postures, with the elbow bent counter-clockwise (sign 1) or
clockwise (-1). Both joints have other angles in either, so agents of different conventions miss the target.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from coda_jax.data.coordination import draw_conventions
from coda_jax.data.dataset import Episodes, episode_returns
from coda_jax.data.teams import Teams, assets, joined_episodes, load_teams, to_episodes
from coda_jax.envs import mamujoco
from coda_jax.envs.rollout import rollout
from coda_jax.ranges import Count, NonNegative, Ranged, Share
from coda_jax.types import PRNGKey

UPPER_ARM, FOREARM = 0.1, 0.11
"""Distances from shoulder to elbow, and from elbow to fingertip."""
MAX_BEND = 2.9
"""Largest angle of the elbow that the teams aim at; the joint stops at 3."""
STIFFNESS, BRAKE = 0.3, 0.055
"""A joint's action is STIFFNESS times its distance to the posture minus BRAKE times its velocity, within [-1, 1]."""
REFLECTION = np.array([1, 1, -1, -1, 1, -1, -1, -1, 1, -1], np.float32)
"""Signs of the state's features under a reflection in the x axis, which also turns the torques round."""
TEAMS, ONE_SIDED = "2reacher", 1
"""The task of the learned teams, and which of them bends the elbow to one side wherever the target is."""
RANDOM_RETURN, EXPERT_RETURN = -11.1446, -4.2371
"""Mean returns of random and expert play: 0 and 1 on the scale of Barde et al. (2024)."""


@dataclasses.dataclass(frozen=True)
class ReacherData(Ranged):
    """The dataset of a two-agent Reacher: scripted teams of two conventions, which know joints and target."""

    task: str = "2reacher-first"
    """A task of MaMuJoCo with the robot Reacher and a joint an agent; tasks differ in the recorded observations."""
    num_episodes: Count = 2000
    """Episodes."""
    coverage: Share = 0.0
    """Share of episodes in which either agent draws its convention for itself, in [0, 1]."""
    noise: NonNegative = 0.1
    """Standard deviation of the Gaussian noise on actions, which are then clipped to [-1, 1]."""


def posture(target: Float[Array, "*batch 2"], elbow: Float[Array, "*batch"]) -> Float[Array, "*batch 2"]:
    """The joint angles that bring the fingertip to a target, by inverse kinematics.

    Args:
        target: its position; the shoulder is the origin.
        elbow: 1 bends the elbow counter-clockwise, -1 clockwise.

    Returns:
        Angles of shoulder and elbow in radians; the nearest posture for targets too close to the shoulder or too far.
    """
    square = jnp.sum(jnp.square(target), axis=-1)
    cosine = (square - UPPER_ARM**2 - FOREARM**2) / (2.0 * UPPER_ARM * FOREARM)
    bend = elbow * jnp.minimum(jnp.arccos(jnp.clip(cosine, -1.0, 1.0)), MAX_BEND)
    to_tip = jnp.arctan2(FOREARM * jnp.sin(bend), UPPER_ARM + FOREARM * jnp.cos(bend))
    return jnp.stack([jnp.arctan2(target[..., 1], target[..., 0]) - to_tip, bend], axis=-1)


def elbows_of(config: ReacherData, key: PRNGKey) -> Float[Array, "N 2"]:
    """The elbow's sign in the convention of each agent in each episode. The key is consumed."""
    return 1.0 - 2.0 * draw_conventions(config.num_episodes, 2, 2, config.coverage, key)


def reacher_episodes(config: ReacherData, key: PRNGKey) -> Episodes:
    """Rolls out scripted teams, with noise, from random starts. The key is consumed.

    Their actions follow from the global state; the recorded observations are the task's.
    """
    key_elbow, key_rollout = jax.random.split(key)
    elbow = elbows_of(config, key_elbow)
    whole_arm = mamujoco.make(config.task, obsk=None)  # one agent, which observes the state and moves both joints

    def act(state: Float[Array, "N 1 10"], carry: tuple[()], key: PRNGKey) -> tuple[Float[Array, "N 1 2"], tuple[()]]:
        action = scripted_action(state[:, 0], elbow)
        noise = config.noise * jax.random.normal(key, action.shape)
        return jnp.clip(action + noise, -1.0, 1.0)[:, None], carry

    length = whole_arm.spec.episode_length
    run = jax.jit(lambda key: rollout(whole_arm, act, (), key, config.num_episodes, length))
    recorded = to_episodes(run(key_rollout))
    action = np.swapaxes(recorded.action, 1, 2)
    return dataclasses.replace(recorded, obs=observations(config.task, recorded.state), action=action)


def learned_reacher_episodes(config: ReacherData, level: str, key: PRNGKey) -> Episodes:
    """Rolls out a learned team of `2reacher` at a level of its training, and reflects every second episode.

    The team, which observes target, joints and most velocities, bends the elbow to one side; its mirror image has the
    other convention. The coverage of `config` has no effect: no episode mixes the two. The recorded observations are
    those of the task. The key is consumed.
    """
    teams = load_teams(assets(TEAMS))
    one = Teams(
        policy=jax.tree.map(lambda leaf: leaf[[ONE_SIDED]], teams.policy),
        num_steps=teams.num_steps,
        returns=teams.returns[[ONE_SIDED]],
    )
    recorded = joined_episodes(mamujoco.make(TEAMS), one, level, config.num_episodes, config.noise, key)
    mirrored = np.arange(config.num_episodes) % 2 == 1
    sign = np.repeat(np.where(mirrored, -1.0, 1.0), np.diff(recorded.bounds)).astype(np.float32)
    state = np.where(sign[:, None] < 0, recorded.state * REFLECTION, recorded.state)
    action = recorded.action * sign[:, None, None]
    return dataclasses.replace(recorded, state=state, obs=observations(config.task, state), action=action)


def observations(task: str, state: Float[np.ndarray, "T 10"]) -> Float[np.ndarray, "T 2 O"]:
    """A task's observations of states."""
    return np.asarray(jax.jit(jax.vmap(lambda state: mamujoco.make(task).set_state(state).obs))(state))


def scripted_action(state: Float[Array, "*batch 10"], elbow: Float[Array, "*batch 2"]) -> Float[Array, "*batch 2"]:
    """The torques of a team: each joint moves to its angle in the posture of its agent's convention.

    Args:
        state: cosines and sines of the joints, target, velocities, and the fingertip's offset from the target.
        elbow: the elbow's sign in the convention of each agent.
    """
    angle = jnp.arctan2(state[..., 2:4], state[..., 0:2])
    target = state[..., 4:6]
    goal = jnp.stack([posture(target, elbow[..., agent])[..., agent] for agent in range(2)], axis=-1)
    error = goal - angle
    # The shoulder takes the shorter way round; the elbow cannot turn through its stop.
    shoulder = jnp.mod(error[..., :1] + jnp.pi, 2.0 * jnp.pi) - jnp.pi
    error = jnp.concatenate([shoulder, error[..., 1:]], axis=-1)
    return jnp.clip(STIFFNESS * error - BRAKE * state[..., 6:8], -1.0, 1.0)


def reacher_return(task: str, num_episodes: int = 256) -> float:
    """The mean return of scripted teams that agree, without noise, from fixed random starts."""
    config = ReacherData(task, num_episodes=num_episodes, noise=0.0)
    return float(episode_returns(reacher_episodes(config, jax.random.key(0))).mean())
