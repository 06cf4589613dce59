"""Frames of all bodies, against MuJoCo in C."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx

from coda_jax.envs.kinematics import ancestors, kinematics
from coda_jax.envs.physics import load_model
from coda_jax.envs.robots import ANT, many_segment_ant, many_segment_swimmer

FRAMES = ("xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis", "geom_xpos", "geom_xmat")


@pytest.mark.parametrize("robot", [many_segment_swimmer(6, 2)[0], many_segment_ant(4, 2)[0]], ids=["swimmer", "ant"])
def test_frames_of_deep_robots_equal_c(robot):
    model = load_model(robot)
    data = mujoco.MjData(model)
    data.qpos[:] += np.random.default_rng(0).normal(size=model.nq)
    qpos = jnp.asarray(data.qpos, jnp.float32)
    mujoco.mj_kinematics(model, data)
    with jax.numpy_rank_promotion("allow"):  # inside mjx
        mjx_model, start = mjx.put_model(model), mjx.make_data(model)
        frames = jax.jit(lambda qpos: kinematics(model, mjx_model, start.replace(qpos=qpos)))(qpos)
    for name in FRAMES:
        ours = getattr(frames, name)
        np.testing.assert_allclose(ours, getattr(data, name).reshape(ours.shape), rtol=0, atol=1e-5, err_msg=name)


def test_ancestors_are_at_powers_of_two():
    model = load_model(many_segment_swimmer(5, 1)[0])  # world, torso, a chain of five more
    assert ancestors(model).tolist() == [[0, 0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3, 4], [0, 0, 0, 0, 0, 1, 2]]
    assert len(ancestors(load_model(ANT))) == 2
