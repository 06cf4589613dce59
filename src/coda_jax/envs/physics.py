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
"""Of 4e-3, 4e-4 and 4e-5, the value closest to C in the 400 steps of `tests/envs/test_tasks.py`."""


def load_model(robot: Robot) -> mujoco.MjModel:
    """The robot's MuJoCo model, with the solver options for MJX."""
    xml = robot.xml
    if not xml.lstrip().startswith("<"):
        xml = gymnasium_xml(xml).read_text()
    with warnings.catch_warnings():
        # `MjSpec` raises a Python warning; `MjModel.from_xml_string` would write to stderr and to a log file.
        warnings.filterwarnings("ignore", "compiler attribute 'settotalmass' is deprecated", UserWarning)
        spec = mujoco.MjSpec.from_string(xml)
        if robot.max_contacts is not None:
            for numeric in list(spec.numerics):  # mjx reads its limit only from the first numeric
                spec.delete(numeric)
            spec.add_numeric(name="max_contact_points", data=[robot.max_contacts], size=1)
        model = spec.compile()
    model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON  # mjx has no PGS, the solver in the XML of the humanoids
    model.opt.iterations = robot.solver_iterations
    model.opt.ls_iterations = robot.line_search_iterations
    # The tendon of a pair is initially perpendicular to the motion of both robots, so MuJoCo gives its limit zero
    # inverse weight; in single precision the resulting weight of 1e15 would make the masses negligible.
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
"""Categories of features, each a flat array: positions; velocities; their clipped values, cosines and sines; per body
the inertia and velocity about the centre of mass and the external force; generalised forces of the actuators; per
tendon the gradient of its length, the length and its rate, at the last evaluation of the forces."""


def roots(model: mujoco.MjModel) -> Int[np.ndarray, "R"]:
    """The first index into qpos of each root body (child of the world with joints): one for a robot, two for a pair."""
    is_root = (model.body_parentid == 0) & (model.body_jntnum > 0)
    return model.jnt_qposadr[model.body_jntadr[is_root]]


def update_tendons(mjx_model: mjx.Model, physics: mjx.Data) -> mjx.Data:
    """Recomputes the tendons from positions and velocities; the frames of the bodies must be up to date."""
    physics = mjx.tendon(mjx_model, mjx.com_pos(mjx_model, physics))
    speed = jnp.sum(physics._impl.ten_J * physics.qvel[None], axis=-1)
    return physics.replace(_impl=physics._impl.replace(ten_velocity=speed))


def advance(model: mujoco.MjModel, mjx_model: mjx.Model, physics: mjx.Data) -> mjx.Data:
    """One physics step, same as `mjx.step`."""
    if model.opt.integrator != mujoco.mjtIntegrator.mjINT_RK4:
        return mjx.step(mjx_model, physics)
    return _runge_kutta(model, mjx_model, physics)


def _runge_kutta(model: mujoco.MjModel, mjx_model: mjx.Model, start: mjx.Data) -> mjx.Data:
    """A fourth-order Runge-Kutta step as one loop; `mjx.step` would compile the dynamics four times.

    As in C, but not in MJX, the rotation of a free joint is fourth-order too (Munthe-Kaas 1998).
    """
    h = model.opt.timestep
    zero = jnp.zeros_like(start.qvel)

    def stage(carry: tuple[mjx.Data, Array, Array, Array], tableau_row: Array) -> tuple[tuple, None]:
        physics, slope, sum_slope, sum_qacc = carry
        node, weight = tableau_row
        displacement, qvel = h * node * slope, start.qvel + h * node * physics.qacc
        qpos = _integrate(model, start.qpos, displacement)
        physics = _forward(model, mjx_model, physics.replace(qpos=qpos, qvel=qvel))
        slope = _slope(model, qvel, displacement)
        return (physics, slope, sum_slope + weight * slope, sum_qacc + weight * physics.qacc), None

    tableau = jnp.array([[0.0, 1 / 6], [0.5, 1 / 3], [0.5, 1 / 3], [1.0, 1 / 6]], start.qpos.dtype)
    (last, _, slope, qacc), _ = jax.lax.scan(stage, (start, zero, zero, zero), tableau)
    return last.replace(
        qpos=_integrate(model, start.qpos, h * slope),
        qvel=start.qvel + h * qacc,
        qacc_warmstart=last.qacc,
        time=start.time + h,
    )


def _slope(model: mujoco.MjModel, qvel: Float[Array, "V"], displacement: Float[Array, "V"]) -> Float[Array, "V"]:
    """The time derivative of `_integrate`'s displacement for which the body moves with velocity `qvel`.

    It differs from `qvel` for rotations only: the inverse derivative of the exponential map, truncated at the order of
    the integrator.
    """
    if model.nq == model.nv:
        return qvel
    rotation, angular_velocity = displacement[3:6], qvel[3:6]
    commutator = jnp.cross(rotation, angular_velocity)
    return qvel.at[3:6].add(commutator / 2 + jnp.cross(rotation, commutator) / 12)


def _forward(model: mujoco.MjModel, mjx_model: mjx.Model, physics: mjx.Data) -> mjx.Data:
    """`mjx.forward` without sensors, with contact frames of capsules as in C."""
    physics = kinematics(model, mjx_model, physics)
    for part in (mjx.com_pos, mjx.tendon, mjx.crb, mjx.tendon_armature, mjx.factor_m, mjx.collision):
        physics = part(mjx_model, physics)
    physics = _align_contacts(model, physics)
    for part in (mjx.make_constraint, mjx.transmission, mjx.fwd_velocity, mjx.fwd_actuation, mjx.fwd_acceleration):
        physics = part(mjx_model, physics)
    return mjx.solve(mjx_model, physics)


def _align_contacts(model: mujoco.MjModel, physics: mjx.Data) -> mjx.Data:
    """Aligns the tangents of contacts between a plane and a capsule with the capsule, as C does.

    The tangents orient the friction pyramid. MJX does not align capsules steeper than 60 degrees, which causes errors
    of up to 2 in one step of Ant.
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
    aligned = jnp.stack([normal, along, jnp.cross(normal, along)], axis=1)
    is_aligned = is_capsule & (length[:, 0] > 1e-6)
    frame = jnp.where(is_aligned[:, None, None], aligned, contact.frame)
    return physics.replace(_impl=physics._impl.replace(contact=contact.replace(frame=frame)))


def _integrate(model: mujoco.MjModel, qpos: Float[Array, "Q"], displacement: Float[Array, "V"]) -> Float[Array, "Q"]:
    """Positions after a displacement (velocity times duration); a free joint, if there is one, comes first."""
    if model.nq == model.nv:
        return qpos + displacement
    rotation = displacement[3:6]
    angle = jnp.sqrt(jnp.sum(jnp.square(rotation)))
    c, s = jnp.cos(angle / 2), rotation * jnp.sin(angle / 2) / jnp.where(angle > 0, angle, 1.0)
    w, v = qpos[3], qpos[4:7]
    quaternion = jnp.concatenate([(w * c - jnp.dot(v, s))[None], w * s + c * v + jnp.cross(v, s)])
    quaternion = quaternion / jnp.sqrt(jnp.sum(jnp.square(quaternion)))
    return jnp.concatenate([qpos[:3] + displacement[:3], quaternion, qpos[7:] + displacement[6:]])
