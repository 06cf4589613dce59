"""Simple spread: agents in the plane share out landmarks among them (multi-agent particle environments, MPE).

The task of OMAR's public offline datasets (Pan et al., 2022), after its code: MPE's dynamics (Lowe et al., 2017),
continuous forces, and a reward of its own, which grows with nearness instead of falling with distance. MPE's original
reward and that of PettingZoo are others, so returns do not compare. An agent's own reward is

    sum over landmarks of min(1 / distance of the nearest agent, 10) - 5 for each agent that it touches,

and the team's is the mean over agents, as OMAR reports it. Nobody observes who goes where: it is a convention.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from coda_jax.envs.base import Environment, EnvState
from coda_jax.types import PRNGKey, TaskSpec

EPISODE_LENGTH = 25
"""Time limit, in steps."""

RANDOM_RETURN, EXPERT_RETURN = 159.8, 516.8
"""Mean returns of random and expert play by three agents: 0 and 100 on the scale of the public results (Pan et al.)."""

TIME_STEP = 0.1
DAMPING = 0.25
"""Share of its velocity that an agent loses in a step."""
FORCE = 5.0
"""Force of an action of 1; the mass is 1."""
RADIUS = 0.15
"""Radius of an agent. Landmarks have no contact."""
CONTACT_FORCE, CONTACT_MARGIN = 100.0, 1e-3
"""Stiffness and softness of contacts."""
TOUCH_COST = 5.0
CLOSEST = 0.1
"""Distance below which nearness to a landmark is not rewarded further."""


def simple_spread(num_agents: int = 3) -> Environment:
    """Builds the task, with as many landmarks as agents.

    The state holds the agents' positions and velocities, the landmarks' positions and the time as a share of an
    episode: S = 6 A + 1. An agent observes its velocity and position, the landmarks and the other agents relative to
    itself, and two silent communication channels (zeros) of each other agent: O = 4 + 2 A + 4 (A - 1), 18 for three.
    Starts are uniform in a square of half width 1, of 2 with more than three agents. `set_state` restores the time too.

    Raises:
        ValueError: the number of agents is not 2 to 10, OMAR's largest.
    """
    if not 2 <= num_agents <= 10:
        raise ValueError(f"simple spread is for 2 to 10 agents, got {num_agents}")
    half_width = 1.0 if num_agents <= 3 else 2.0
    spec = TaskSpec(
        name="simple-spread" if num_agents == 3 else f"{num_agents}simple-spread",
        num_agents=num_agents,
        state_dim=6 * num_agents + 1,
        obs_dim=4 + 2 * num_agents + 4 * (num_agents - 1),
        action_dim=2,
        episode_length=EPISODE_LENGTH,
    )

    def reset(key: PRNGKey) -> EnvState:
        key_agents, key_landmarks = jax.random.split(key)
        position, landmark = (
            jax.random.uniform(k, (num_agents, 2), minval=-half_width, maxval=half_width)
            for k in (key_agents, key_landmarks)
        )
        return set_state(_pack(position, jnp.zeros((num_agents, 2)), landmark, jnp.zeros((), jnp.int32)))

    def set_state(state: Float[Array, "S"]) -> EnvState:
        time = jnp.round(jnp.clip(state[-1], 0.0, 1.0) * EPISODE_LENGTH).astype(jnp.int32)
        return show(state, jnp.zeros(()), time)

    def step(now: EnvState, action: Float[Array, "A U"]) -> EnvState:
        position, velocity, landmark = _unpack(now.state)
        force = FORCE * jnp.clip(action, -1.0, 1.0) + contact_force(position)
        velocity = (1.0 - DAMPING) * velocity + TIME_STEP * force
        position = position + TIME_STEP * velocity
        time = now.time + 1
        return show(_pack(position, velocity, landmark, time), team_reward(position, landmark), time)

    def show(state: Float[Array, "S"], reward: Array, time: Array) -> EnvState:
        return EnvState(
            state=state,
            obs=_observe(*_unpack(state)),
            reward=reward,
            terminal=jnp.zeros((), bool),
            truncated=time >= EPISODE_LENGTH,
            time=time,
        )

    return Environment(reset, step, set_state, spec)


def contact_force(position: Float[Array, "A 2"]) -> Float[Array, "A 2"]:
    """The force on every agent from those that it touches: a soft spring along the line between them."""
    offset = position[:, None] - position[None]
    distance = _distance(offset)
    overlap = CONTACT_MARGIN * jax.nn.softplus((2.0 * RADIUS - distance) / CONTACT_MARGIN)
    return jnp.sum(CONTACT_FORCE * (overlap / distance)[..., None] * offset, axis=1)  # 0 on oneself, as offset is 0


def team_reward(position: Float[Array, "A 2"], landmark: Float[Array, "L 2"]) -> Float[Array, ""]:
    """The mean over agents of OMAR's reward, at the positions after a step."""
    nearest = jnp.min(_distance(position[:, None] - landmark[None]), axis=0)
    touching = _distance(position[:, None] - position[None]) < 2.0 * RADIUS
    num_touching = jnp.sum(touching & ~jnp.eye(len(position), dtype=bool))
    return jnp.sum(1.0 / jnp.maximum(nearest, CLOSEST)) - TOUCH_COST * num_touching / len(position)


def nearest_landmarks(state: Float[Array, "*batch S"]) -> Int[Array, "*batch A"]:
    """The index of the landmark nearest to each agent."""
    position, _, landmark = jnp.moveaxis(state[..., :-1].reshape(*state.shape[:-1], 3, -1, 2), -3, 0)
    return jnp.argmin(_distance(position[..., :, None, :] - landmark[..., None, :, :]), axis=-1)


def _observe(
    position: Float[Array, "A 2"], velocity: Float[Array, "A 2"], landmark: Float[Array, "A 2"]
) -> Float[Array, "A O"]:
    num_agents = len(position)
    others = jnp.array([[j for j in range(num_agents) if j != i] for i in range(num_agents)])
    parts = (
        velocity,
        position,
        (landmark[None] - position[:, None]).reshape(num_agents, -1),
        (position[others] - position[:, None]).reshape(num_agents, -1),
        jnp.zeros((num_agents, 2 * (num_agents - 1))),
    )
    return jnp.concatenate(parts, axis=-1)


def _distance(offset: Float[Array, "*batch 2"]) -> Float[Array, "*batch"]:
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(offset), axis=-1), 1e-12))


def _pack(position: Array, velocity: Array, landmark: Array, time: Array) -> Float[Array, "S"]:
    parts = [position.reshape(-1), velocity.reshape(-1), landmark.reshape(-1), time[None] / EPISODE_LENGTH]
    return jnp.concatenate(parts)


def _unpack(state: Float[Array, "S"]) -> tuple[Float[Array, "A 2"], Float[Array, "A 2"], Float[Array, "A 2"]]:
    position, velocity, landmark = state[:-1].reshape(3, -1, 2)
    return position, velocity, landmark
