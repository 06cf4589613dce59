"""Multi-agent MuJoCo in MJX, as pure functions: a robot whose joints are divided among agents.

`make(name)` gives an `Environment`, whose functions act on a single environment; `jax.vmap` batches them. The
state and reward follow gymnasium's MuJoCo tasks and the observations gymnasium-robotics' `mamujoco_v1`, of which the
tests are the truth. Nothing resets by itself: `rollout` handles the end of an episode, so the last
observation of an episode is never lost.

Actions lie in [-1, 1] for every robot and are scaled to the actuators' range. Only the humanoids differ from
gymnasium-robotics here: their actuators have the range [-0.4, 0.4], so an action of 1 here is its action of 0.4. Where
agents have unequal numbers of joints (humanoids), the last actions of the smaller agents are idle, and the shorter
observations are padded with zeros.
"""

import contextlib
import io
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Bool, Float

from coda_jax.backend import full_precision
from coda_jax.envs.base import Environment, EnvState
from coda_jax.envs.factorization import Factorization, Feature, JointGraph, Span, factorize
from coda_jax.envs.kinematics import kinematics
from coda_jax.envs.physics import READINGS, advance, load_model, roots, update_tendons
from coda_jax.envs.robots import Health, Locomotion, MeanLocomotion, Reach, Robot, StandUp
from coda_jax.envs.tasks import TASKS
from coda_jax.types import PRNGKey, TaskSpec

with contextlib.redirect_stdout(io.StringIO()):  # mjx prints that its optional warp backend is missing
    from mujoco import mjx


def make(name: str, obsk: int | None = 1) -> Environment:
    """Builds a MaMuJoCo task.

    Args:
        name: a task of `tasks.TASKS`, such as `2halfcheetah`.
        obsk: graph distance up to which an agent observes joints besides its own; None for a single agent that
            observes the global state and moves all joints.

    Raises:
        KeyError: there is no task of that name.

    Examples:
        >>> cj.make_env("2halfcheetah").spec.obs_dim
        12
    """
    return build(name, *TASKS[name], obsk)


def build(name: str, robot: Robot, graph: JointGraph, obsk: int | None = 1) -> Environment:
    """Builds a task from a robot and a joint graph; use `make` for the tasks in `TASKS`."""
    model = load_model(robot)
    factorization = factorize(model, graph, obsk, robot.categories)
    num_agents, obs_dim = factorization.obs_index.shape
    spec = TaskSpec(
        name=name,
        num_agents=num_agents,
        state_dim=factorization.state_dim,
        obs_dim=obs_dim,
        action_dim=factorization.action_index.shape[1],
        episode_length=robot.episode_length,
    )
    reset, step, set_state = _simulation(robot, model, factorization)
    return Environment(full_precision(reset), full_precision(step), full_precision(set_state), spec)


def _simulation(
    robot: Robot, model: mujoco.MjModel, factorization: Factorization
) -> tuple[
    Callable[[PRNGKey], EnvState],
    Callable[[EnvState, Float[Array, "A U"]], EnvState],
    Callable[[Float[Array, "S"]], EnvState],
]:
    mjx_model = mjx.put_model(model)
    template = mjx.make_data(model)
    qpos0 = jnp.asarray(model.qpos0, jnp.float32)
    root_position = slice(0, robot.place_dims)
    other_roots = [slice(root, root + robot.place_dims) for root in roots(model)[1:] if robot.place_dims]
    actuator_range = _actuator_range(model)
    state_spans = _spans(factorization.features[: factorization.state_dim])
    extra_spans = _spans(factorization.features[factorization.state_dim :])
    categories = {category for category, _ in factorization.features}
    has_bodies = bool(categories & {"cinert", "cvel"})
    has_tendons = "ten_J" in categories
    has_frames = has_bodies or has_tendons or getattr(robot.reward, "point", None) != "root"
    has_forces = any(category.startswith("cfrc_ext") for category in categories)
    has_forces |= isinstance(robot.reward, Locomotion | StandUp) and robot.reward.contact_cost > 0

    def move_root(qpos: Float[Array, "nq"], position: Float[Array, "D"] | float) -> Float[Array, "nq"]:
        """Moves the root of the robot to a position; the other robot of a pair moves by the same displacement."""
        for other in other_roots:
            qpos = qpos.at[other].add(position - qpos[root_position])
        return qpos.at[root_position].set(position)

    def read(physics: mjx.Data, spans: list[Span]) -> Float[Array, "_"]:
        match robot.reward:
            case Reach() as terms:
                sources = READINGS | {"to_target": lambda physics: _to_target(terms, model, physics)}
            case _:
                sources = READINGS
        if not spans:
            return jnp.zeros((0,), physics.qpos.dtype)
        return jnp.concatenate([sources[category](physics)[first:end] for category, first, end in spans])

    def observe(state: Array, physics: mjx.Data, reward: Array, terminal: Array, time: Array) -> EnvState:
        features = jnp.concatenate([state, read(physics, extra_spans)])
        return EnvState(
            state=state,
            obs=jnp.take(features, factorization.obs_index, mode="fill", fill_value=0.0),
            reward=reward,
            terminal=terminal,
            truncated=time >= robot.episode_length,
            time=time,
            physics=physics,
        )

    def state_after_reset(qpos: Float[Array, "nq"], qvel: Float[Array, "nv"], state: Array | None) -> EnvState:
        # No `mjx.forward` here: every step begins with it, and automatic resets compute a reset at every step.
        physics = template.replace(qpos=move_root(qpos, 0.0), qvel=qvel)
        if has_frames:
            with jax.numpy_rank_promotion("allow"):  # inside mjx
                physics = kinematics(model, mjx_model, physics)
                if has_bodies:
                    physics = mjx.com_vel(mjx_model, mjx.com_pos(mjx_model, physics))
                if has_tendons:
                    physics = update_tendons(mjx_model, physics)
        physics = physics.replace(qpos=qpos)
        state = read(physics, state_spans) if state is None else state
        return observe(state, physics, jnp.zeros(()), jnp.zeros((), bool), jnp.zeros((), jnp.int32))

    def reset(key: PRNGKey) -> EnvState:
        return state_after_reset(*_draw_start(robot, qpos0, model.nv, key), state=None)

    def set_state(state: Float[Array, "S"]) -> EnvState:
        return state_after_reset(*_from_state(factorization, model.nq, model.nv, state), state=state)

    def step(state: EnvState, action: Float[Array, "A U"]) -> EnvState:
        control = jnp.zeros((model.nu,)).at[factorization.action_index].set(action)
        if actuator_range is not None:
            low, high = actuator_range
            control = 0.5 * (low + high) + 0.5 * (high - low) * control

        def substep(physics: mjx.Data, _: None) -> tuple[mjx.Data, None]:
            return advance(model, mjx_model, physics), None

        # The dynamics do not depend on the root position, but precision does: 400 m from the origin, single precision
        # adds errors of 5e-3 a step to the contacts. Therefore every step begins at the origin.
        start = state.physics.qpos[root_position]
        before = state.physics.replace(qpos=move_root(state.physics.qpos, 0.0), ctrl=control)
        with jax.numpy_rank_promotion("allow"):  # inside mjx
            after, _ = jax.lax.scan(substep, before, length=robot.frame_skip)
            if has_forces:
                after = mjx.rne_postconstraint(mjx_model, after)
        terminal = jnp.zeros((), bool) if robot.health is None else ~_is_healthy(robot.health, after)
        effort = jnp.sum(jnp.square(jnp.take(control, factorization.action_index, mode="fill", fill_value=0.0)))
        reward = _reward(robot, model, before, after, effort, terminal)
        displacement = after.qpos[root_position]
        physics = after.replace(qpos=move_root(after.qpos, start + displacement))
        if has_frames and robot.place_dims:
            shift = jnp.zeros(3).at[root_position].set(displacement)[None]
            physics = physics.replace(xpos=after.xpos - shift, xipos=after.xipos - shift)
        return observe(read(physics, state_spans), physics, reward, terminal, state.time + 1)

    return reset, step, set_state


def _reward(
    robot: Robot, model: mujoco.MjModel, before: mjx.Data, after: mjx.Data, effort: Array, terminal: Array
) -> Float[Array, ""]:
    """The reward of a control step, from MJX data relative to the root position before the step.

    Args:
        robot: the robot and its reward terms.
        model: its MuJoCo model.
        before: the data at the beginning of the step.
        after: the data at its end.
        effort: sum of the squared controls.
        terminal: whether the robot is no longer healthy.
    """

    def contact_cost(terms: Locomotion | StandUp) -> Array:
        forces = READINGS[terms.contact_category](after)
        return jnp.minimum(terms.contact_cost * jnp.sum(jnp.square(forces)), terms.contact_cost_limit)

    match robot.reward:
        case Reach() as terms:
            return -jnp.sqrt(jnp.sum(jnp.square(_to_target(terms, model, after)))) - effort
        case StandUp() as terms:
            height = after.qpos[2] / model.opt.timestep
            return height - terms.control_cost * effort - contact_cost(terms) + 1.0
        case MeanLocomotion() as terms:
            x = roots(model)
            distance = jnp.mean(after.qpos[x] - before.qpos[x])
            return distance / (robot.frame_skip * model.opt.timestep) - terms.control_cost * effort / len(x)
        case Locomotion() as terms:
            distance = _rewarded_position(terms, model, after) - _rewarded_position(terms, model, before)
            speed = distance / (robot.frame_skip * model.opt.timestep)
            reward = terms.speed_weight * speed - terms.control_cost * effort
            if terms.alive:
                reward += terms.alive if terms.always_alive else terms.alive * ~terminal
            return reward - contact_cost(terms) if terms.contact_cost else reward


def _rewarded_position(terms: Locomotion, model: mujoco.MjModel, physics: mjx.Data) -> Float[Array, ""]:
    """The x coordinate of the point whose speed is rewarded."""
    if terms.point == "root":
        return physics.qpos[0]
    if terms.point == "torso":
        return physics.xpos[model.body("torso").id, 0]
    share = model.body_mass / model.body_mass.sum()
    return jnp.sum(jnp.asarray(share, physics.xipos.dtype) * physics.xipos[:, 0])


def _to_target(terms: Reach, model: mujoco.MjModel, physics: mjx.Data) -> Float[Array, "3"]:
    return physics.xpos[model.body(terms.body).id] - physics.xpos[model.body(terms.target).id]


def _is_healthy(health: Health, physics: mjx.Data) -> Bool[Array, ""]:
    rest = jnp.concatenate([physics.qpos[2:], physics.qvel])
    healthy = jnp.all(jnp.abs(rest) < health.limit)
    for index, low, high in health.ranges:
        healthy &= (low < physics.qpos[index]) & (physics.qpos[index] < high)
    return healthy


def _draw_start(
    robot: Robot, qpos0: Float[Array, "nq"], nv: int, key: PRNGKey
) -> tuple[Float[Array, "nq"], Float[Array, "nv"]]:
    """Positions and velocities after a reset; the key is consumed."""
    start = robot.start
    key_qpos, key_qvel = jax.random.split(key)
    noise = start.position_noise
    if start.is_normal:
        qvel = start.velocity_noise * jax.random.normal(key_qvel, (nv,))
    else:
        qvel = jax.random.uniform(key_qvel, (nv,), minval=-start.velocity_noise, maxval=start.velocity_noise)
    if start.target_radius is None:
        return qpos0 + jax.random.uniform(key_qpos, qpos0.shape, minval=-noise, maxval=noise), qvel
    key_qpos, key_target = jax.random.split(key_qpos)
    target = start.target_radius * jax.random.ball(key_target, 2)
    qpos = qpos0 + jax.random.uniform(key_qpos, qpos0.shape, minval=-noise, maxval=noise)
    return qpos.at[-2:].set(target), qvel.at[-2:].set(0.0)


def _from_state(
    factorization: Factorization, nq: int, nv: int, state: Float[Array, "S"]
) -> tuple[Float[Array, "nq"], Float[Array, "nv"]]:
    """Positions and velocities that make a global state; quantities that it lacks are zero."""
    index_of = {feature: index for index, feature in enumerate(factorization.features[: factorization.state_dim])}

    def position(k: int) -> Array:
        if ("qpos", k) in index_of:
            return state[index_of["qpos", k]]
        if ("cos", k) in index_of:
            return jnp.arctan2(state[index_of["sin", k]], state[index_of["cos", k]])
        # The gradient of the tendon length is a unit vector, and the centre of the pair is the origin.
        if ("ten_J", k) in index_of:
            return state[index_of["ten_J", k]] * state[index_of["ten_length", 0]] / 2
        return jnp.zeros((), state.dtype)

    def velocity(k: int) -> Array:
        index = index_of.get(("qvel", k), index_of.get(("qvel_clipped", k)))
        return jnp.zeros((), state.dtype) if index is None else state[index]

    return jnp.stack([position(k) for k in range(nq)]), jnp.stack([velocity(k) for k in range(nv)])


def _actuator_range(model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray] | None:
    """Lowest and highest controls; None if they are -1 and 1 for all actuators."""
    low, high = model.actuator_ctrlrange.astype(np.float32).T
    return None if (low == -1.0).all() and (high == 1.0).all() else (low, high)


def _spans(features: tuple[Feature, ...]) -> list[Span]:
    """Groups features into spans of consecutive ones."""
    spans = []
    for (category, _), run in itertools.groupby(enumerate(features), lambda item: (item[1][0], item[1][1] - item[0])):
        first, *rest = [index for _, (_, index) in run]
        spans.append((category, first, first + len(rest) + 1))
    return spans
