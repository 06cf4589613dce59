"""Where the bodies of a robot are, given its joints: MJX's answer, got at another way for deep robots."""

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
    """As `mjx.kinematics`, which goes from a body to the next.

    In a chain of single bodies XLA fuses these steps, and computes each one anew wherever it is used: a swimmer of ten
    segments takes 0.2 s on a CPU, and one of twenty minutes. So in robots deeper than the humanoids, MJX only places
    every body relative to its parent, as if all stood on the ground; frames are then composed along the tree in
    log2(depth) rounds. Robots that are not integrated by Runge-Kutta step by `mjx.step`, whatever their depth.
    """
    jumps = ancestors(model)
    if len(jumps) <= 3:  # no body has more than seven above it
        return mjx.kinematics(mjx_model, physics)
    parent = model.body_parentid
    local = mjx.kinematics(mjx_model.replace(body_parentid=np.zeros_like(parent)), physics)

    def jump(frame: tuple[Array, Array], above: Array) -> tuple[tuple[Array, Array], None]:
        xpos, xquat = frame
        return (xpos[above] + _rotate(xquat[above], xpos), _multiply(xquat[above], xquat)), None

    (xpos, xquat), _ = jax.lax.scan(jump, (local.xpos, local.xquat), jnp.asarray(jumps))
    origin, turn = xpos[parent], xquat[parent]

    def point(body: np.ndarray, position: Float[Array, "N 3"]) -> Float[Array, "N 3"]:
        return origin[body] + _rotate(turn[body], position)

    def axes(body: np.ndarray, matrix: Float[Array, "N 3 3"]) -> Float[Array, "N 3 3"]:
        return jnp.moveaxis(_rotate(turn[body][:, None], jnp.moveaxis(matrix, -1, -2)), -1, -2)

    every = np.arange(model.nbody)
    return local.replace(
        xpos=xpos,
        xquat=xquat,
        xmat=axes(every, local.xmat),
        xipos=point(every, local.xipos),
        ximat=axes(every, local.ximat),
        xanchor=point(model.jnt_bodyid, local.xanchor),
        xaxis=_rotate(turn[model.jnt_bodyid], local.xaxis),
        geom_xpos=point(model.geom_bodyid, local.geom_xpos),
        geom_xmat=axes(model.geom_bodyid, local.geom_xmat),
        site_xpos=point(model.site_bodyid, local.site_xpos),
        site_xmat=axes(model.site_bodyid, local.site_xmat),
    )


def ancestors(model: mujoco.MjModel) -> Int[np.ndarray, "J B"]:
    """The 1st, 2nd, 4th, 8th, ... ancestor of each body, 0 beyond the world, as long as there is any other."""
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
    """Vectors turned by unit quaternions."""
    a, u = q[..., :1], jnp.broadcast_to(q[..., 1:], x.shape)
    t = 2.0 * jnp.cross(u, x)
    return x + a * t + jnp.cross(u, t)
