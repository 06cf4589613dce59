"""Forward kinematics: the frames of a robot's bodies, with the results of MJX but less compilation for long chains."""

import contextlib
import io

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jaxtyping import Array, Float, Int

with contextlib.redirect_stdout(io.StringIO()):  # mjx prints that its optional warp backend is missing
    from mujoco import mjx


def kinematics(model: mujoco.MjModel, mjx_model: mjx.Model, physics: mjx.Data) -> mjx.Data:
    """Same as `mjx.kinematics`, which loops over the bodies from parent to child.

    In a chain of single bodies XLA fuses these steps and recomputes each one at every use: a swimmer of ten segments
    takes 0.2 s on a CPU, and a swimmer of twenty segments takes minutes. Therefore, in kinematic trees deeper than the
    humanoids', MJX only computes the frame of every body relative to its parent (with the parent at the origin); the
    frames are then composed along the tree in log2(depth) rounds of pointer jumping. Robots without the Runge-Kutta
    integrator use `mjx.step`, whatever their depth.
    """
    jumps = ancestors(model)
    if len(jumps) <= 3:  # no body has more than seven ancestors
        return mjx.kinematics(mjx_model, physics)
    parent = model.body_parentid
    local = mjx.kinematics(mjx_model.replace(body_parentid=np.zeros_like(parent)), physics)

    def jump(frame: tuple[Array, Array], above: Array) -> tuple[tuple[Array, Array], None]:
        xpos, xquat = frame
        return (xpos[above] + _rotate(xquat[above], xpos), _multiply(xquat[above], xquat)), None

    (xpos, xquat), _ = jax.lax.scan(jump, (local.xpos, local.xquat), jnp.asarray(jumps))
    parent_xpos, parent_xquat = xpos[parent], xquat[parent]

    def point(body: np.ndarray, position: Float[Array, "N 3"]) -> Float[Array, "N 3"]:
        return parent_xpos[body] + _rotate(parent_xquat[body], position)

    def axes(body: np.ndarray, matrix: Float[Array, "N 3 3"]) -> Float[Array, "N 3 3"]:
        return jnp.moveaxis(_rotate(parent_xquat[body][:, None], jnp.moveaxis(matrix, -1, -2)), -1, -2)

    all_bodies = np.arange(model.nbody)
    return local.replace(
        xpos=xpos,
        xquat=xquat,
        xmat=axes(all_bodies, local.xmat),
        xipos=point(all_bodies, local.xipos),
        ximat=axes(all_bodies, local.ximat),
        xanchor=point(model.jnt_bodyid, local.xanchor),
        xaxis=_rotate(parent_xquat[model.jnt_bodyid], local.xaxis),
        geom_xpos=point(model.geom_bodyid, local.geom_xpos),
        geom_xmat=axes(model.geom_bodyid, local.geom_xmat),
        site_xpos=point(model.site_bodyid, local.site_xpos),
        site_xmat=axes(model.site_bodyid, local.site_xmat),
    )


def ancestors(model: mujoco.MjModel) -> Int[np.ndarray, "J B"]:
    """The 1st, 2nd, 4th, 8th, ... ancestor of each body; 0 (the world) past the root. Rows of zeros are left out."""
    rows = [model.body_parentid]
    while rows[-1].any():
        rows.append(rows[-1][rows[-1]])
    return np.stack(rows[:-1]) if rows[1:] else np.zeros((0, model.nbody), int)


def _multiply(p: Float[Array, "*n 4"], q: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Product of quaternions."""
    a, u, b, v = p[..., :1], p[..., 1:], q[..., :1], q[..., 1:]
    scalar = a * b - jnp.sum(u * v, axis=-1, keepdims=True)
    return jnp.concatenate([scalar, a * v + b * u + jnp.cross(u, v)], axis=-1)


def _rotate(q: Float[Array, "*#n 4"], x: Float[Array, "*#n 3"]) -> Float[Array, "*n 3"]:
    """Vectors rotated by unit quaternions."""
    a, u = q[..., :1], jnp.broadcast_to(q[..., 1:], x.shape)
    t = 2.0 * jnp.cross(u, x)
    return x + a * t + jnp.cross(u, t)
