"""Physics beyond MJX: loading gymnasium's robots, a Runge-Kutta step that compiles fast, and readings of the data."""

import contextlib
import io
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float, Int

from coda_jax.envs.assets import gymnasium_xml
from coda_jax.envs.kinematics import kinematics
from coda_jax.envs.robots import Robot

with contextlib.redirect_stdout(io.StringIO()):  # mjx prints that its optional warp backend is missing
    from mujoco import mjx


_LEAST_INVERSE_WEIGHT = 4e-5
"""Of 4e-3, 4e-4 and 4e-5, the nearest to C in the 400 steps of `tests/envs/test_tasks.py`."""


def load_model(robot: Robot) -> mujoco.MjModel:
    """The robot's MuJoCo model, with the solver options that MJX runs it with."""
    xml = robot.xml
    if not xml.lstrip().startswith("<"):
        xml = gymnasium_xml(xml).read_text()
    with warnings.catch_warnings():
        # By way of `MjSpec` it is a Python warning; `MjModel.from_xml_string` would write it to stderr and a log file.
        warnings.filterwarnings("ignore", "compiler attribute 'settotalmass' is deprecated", UserWarning)
        spec = mujoco.MjSpec.from_string(xml)
        if robot.max_contacts is not None:
            for numeric in list(spec.numerics):  # mjx finds its limit only if it is the first of the numbers
                spec.delete(numeric)
            spec.add_numeric(name="max_contact_points", data=[robot.max_contacts], size=1)
        model = spec.compile()
    model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON  # mjx has no PGS, which the humanoids ask for
    model.opt.iterations = robot.solver_iterations
    model.opt.ls_iterations = robot.line_search_iterations
    # A pair's tendon lies across their way at first, so that MuJoCo takes its limit for infinitely heavy: in single
    # precision its weight of 1e15 leaves nothing of the masses.
    model.tendon_invweight0[model.tendon_invweight0 == 0.0] = _LEAST_INVERSE_WEIGHT
    return model


READINGS: dict[str, Callable[[mjx.Data], Array]] = {
    "qpos": lambda physics: physics.qpos,
    "qvel": lambda physics: physics.qvel,
    "qvel_clipped": lambda physics: jnp.clip(physics.qvel, -10.0, 10.0),
    "cos": lambda physics: jnp.cos(physics.qpos),
    "sin": lambda physics: jnp.sin(physics.qpos),
    "cinert": lambda physics: physics._impl.cinert.reshape(-1),
    "cvel": lambda physics: physics.cvel.reshape(-1),
    "qfrc_actuator": lambda physics: physics.qfrc_actuator,
    "cfrc_ext": lambda physics: physics._impl.cfrc_ext.reshape(-1),
    "cfrc_ext_clipped": lambda physics: jnp.clip(physics._impl.cfrc_ext, -1.0, 1.0).reshape(-1),
    "ten_J": lambda physics: physics._impl.ten_J.reshape(-1),
    "ten_length": lambda physics: physics.ten_length,
    "ten_velocity": lambda physics: physics._impl.ten_velocity,
}
"""Categories of features, each a flat array: positions, velocities, their clipped or circular forms; of each body the
inertia and velocity about the centre of mass and the external force; generalised forces of the actuators; of each
tendon the gradient of its length, the length and its rate, as old as the last evaluation of the forces."""


def roots(model: mujoco.MjModel) -> Int[np.ndarray, "R"]:
    """Where in qpos the bodies begin that hang on the world alone: one a robot, two a pair of robots."""
    is_root = (model.body_parentid == 0) & (model.body_jntnum > 0)
    return model.jnt_qposadr[model.body_jntadr[is_root]]


def hang_tendons(mjx_model: mjx.Model, physics: mjx.Data) -> mjx.Data:
    """Brings the tendons up to date with positions and velocities, given the bodies'."""
    physics = mjx.tendon(mjx_model, mjx.com_pos(mjx_model, physics))
    speed = jnp.sum(physics._impl.ten_J * physics.qvel[None], axis=-1)
    return physics.replace(_impl=physics._impl.replace(ten_velocity=speed))


def advance(model: mujoco.MjModel, mjx_model: mjx.Model, physics: mjx.Data) -> mjx.Data:
    """One physics step, as `mjx.step`."""
    if model.opt.integrator != mujoco.mjtIntegrator.mjINT_RK4:
        return mjx.step(mjx_model, physics)
    return _runge_kutta(model, mjx_model, physics)


def _runge_kutta(model: mujoco.MjModel, mjx_model: mjx.Model, start: mjx.Data) -> mjx.Data:
    """A Runge-Kutta step of fourth order in one loop; `mjx.step` compiles the dynamics four times.

    As in C, and not in MJX, the rotation of a free joint is of fourth order too (Munthe-Kaas 1998).
    """
    h = model.opt.timestep
    zero = jnp.zeros_like(start.qvel)

    def stage(carry: tuple[mjx.Data, Array, Array, Array], weights: Array) -> tuple[tuple, None]:
        physics, slope, sum_slope, sum_qacc = carry
        reach, share = weights
        way, qvel = h * reach * slope, start.qvel + h * reach * physics.qacc
        physics = _forward(model, mjx_model, physics.replace(qpos=_move(model, start.qpos, way), qvel=qvel))
        slope = _slope(model, qvel, way)
        return (physics, slope, sum_slope + share * slope, sum_qacc + share * physics.qacc), None

    weights = jnp.array([[0.0, 1 / 6], [0.5, 1 / 3], [0.5, 1 / 3], [1.0, 1 / 6]], start.qpos.dtype)
    (last, _, slope, qacc), _ = jax.lax.scan(stage, (start, zero, zero, zero), weights)
    return last.replace(
        qpos=_move(model, start.qpos, h * slope),
        qvel=start.qvel + h * qacc,
        qacc_warmstart=last.qacc,
        time=start.time + h,
    )


def _slope(model: mujoco.MjModel, qvel: Float[Array, "V"], way: Float[Array, "V"]) -> Float[Array, "V"]:
    """The rate at which `_move`'s way must grow, after this much of it, to move with the velocity `qvel`.

    They differ for rotations only: the inverse derivative of the exponential map, to the order that matters.
    """
    if model.nq == model.nv:
        return qvel
    turned, turn = way[3:6], qvel[3:6]
    bend = jnp.cross(turned, turn)
    return qvel.at[3:6].add(bend / 2 + jnp.cross(turned, bend) / 12)


def _forward(model: mujoco.MjModel, mjx_model: mjx.Model, physics: mjx.Data) -> mjx.Data:
    """`mjx.forward` without sensors, with the contacts of capsules as C has them."""
    physics = kinematics(model, mjx_model, physics)
    for part in (mjx.com_pos, mjx.tendon, mjx.crb, mjx.tendon_armature, mjx.factor_m, mjx.collision):
        physics = part(mjx_model, physics)
    physics = _turn_contacts(model, physics)
    for part in (mjx.make_constraint, mjx.transmission, mjx.fwd_velocity, mjx.fwd_actuation, mjx.fwd_acceleration):
        physics = part(mjx_model, physics)
    return mjx.solve(mjx_model, physics)


def _turn_contacts(model: mujoco.MjModel, physics: mjx.Data) -> mjx.Data:
    """Turns the tangents of contacts between a plane and a capsule along the capsule, as C does.

    The friction pyramid follows them. MJX leaves capsules that stand steeper than 60 degrees unaligned: in one step of
    Ant that is an error of up to 2.
    """
    contact = physics._impl.contact
    geom_type = jnp.asarray(model.geom_type)
    first, second = contact.geom[:, 0], contact.geom[:, 1]
    plane, capsule = int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_CAPSULE)
    is_capsule = (geom_type[first] == plane) & (geom_type[second] == capsule)
    normal, axis = contact.frame[:, 0], physics.geom_xmat[second][:, :, 2]
    along = axis - normal * jnp.sum(normal * axis, axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.sum(jnp.square(along), axis=-1, keepdims=True))
    along = along / jnp.maximum(length, 1e-6)
    turned = jnp.stack([normal, along, jnp.cross(normal, along)], axis=1)
    is_turned = is_capsule & (length[:, 0] > 1e-6)
    frame = jnp.where(is_turned[:, None, None], turned, contact.frame)
    return physics.replace(_impl=physics._impl.replace(contact=contact.replace(frame=frame)))


def _move(model: mujoco.MjModel, qpos: Float[Array, "Q"], way: Float[Array, "V"]) -> Float[Array, "Q"]:
    """Positions after a way, a velocity times a duration; a free joint, if there is one, comes first."""
    if model.nq == model.nv:
        return qpos + way
    turn = way[3:6]
    angle = jnp.sqrt(jnp.sum(jnp.square(turn)))
    c, s = jnp.cos(angle / 2), turn * jnp.sin(angle / 2) / jnp.where(angle > 0, angle, 1.0)
    w, v = qpos[3], qpos[4:7]
    quaternion = jnp.concatenate([(w * c - jnp.dot(v, s))[None], w * s + c * v + jnp.cross(v, s)])
    quaternion = quaternion / jnp.sqrt(jnp.sum(jnp.square(quaternion)))
    return jnp.concatenate([qpos[:3] + way[:3], quaternion, qpos[7:] + way[6:]])
