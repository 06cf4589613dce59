"""Precision of matrix products, and sizes of what is computed at once: neither changes a number on a CPU."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax import evaluation, transforms
from coda_jax.augmentation.base import sample_in_chunks
from coda_jax.backend import ACCELERATOR, CPU, sizes
from coda_jax.data import named
from coda_jax.data.teams import assets, load_teams
from coda_jax.envs import mamujoco
from coda_jax.marl.input_scale import raw_inputs
from coda_jax.marl.maddpg_bc import MaddpgBcConfig, maddpg_bc
from coda_jax.types import TaskSpec, Trajectory
from tests.drift import DRIFT, SPEC, drift_episodes

PRODUCTS = ("dot_general", "conv_general_dilated")


def products(jaxpr) -> list[str]:
    """The precision of every matrix product and convolution of a program, loops and conditionals included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            found.append(str(equation.params["precision"]))
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += products(inner)
    return found


def is_full(precisions: list[str]) -> bool:
    return all(re.findall("HIGHEST|HIGH|DEFAULT|None", p) in (["HIGHEST"] * 2, ["HIGHEST"]) for p in precisions)


@pytest.fixture(params=["default", "highest"])
def surrounding(request):
    with jax.default_matmul_precision(request.param):
        yield request.param


def test_physics_is_traced_in_full_precision(surrounding):
    env = mamujoco.make("2halfcheetah")
    state = jax.eval_shape(env.reset, jax.random.key(0))
    action = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    found = products(jax.make_jaxpr(env.step)(state, action).jaxpr)
    assert len(found) > 10 and is_full(found)


def test_networks_follow_the_setting():
    learner = maddpg_bc(SPEC, MaddpgBcConfig(), raw_inputs(SPEC))
    state = jax.eval_shape(learner.init, jax.random.key(0))
    obs = jax.ShapeDtypeStruct((3, SPEC.num_agents, SPEC.obs_dim), jnp.float32)

    def found(precision):
        with jax.default_matmul_precision(precision):
            program = jax.make_jaxpr(lambda state, obs: learner.act(state, obs, learner.initial_carry((3,))))
            return products(program(state, obs).jaxpr)

    assert is_full(found("highest"))
    assert found("default") and not any("HIGH" in p for p in found("default"))


def test_evaluation_is_traced_in_full_precision(surrounding):
    learner = maddpg_bc(SPEC, MaddpgBcConfig(), raw_inputs(SPEC))
    state = jax.eval_shape(learner.init, jax.random.key(0))
    returns = jax.make_jaxpr(lambda state, key: evaluation.policy_returns(DRIFT, learner, state, key, 2))
    found = products(returns(state, jax.random.key(0)).jaxpr)
    assert found and is_full(found)


def test_the_transform_has_no_matrix_products():
    rng = np.random.default_rng(0)
    fitted = transforms.fit(rng.normal(size=(50, 3)))
    z = jnp.zeros((4, 5, 3))
    for function in (
        transforms.inverse,
        lambda fitted, x: transforms.forward(fitted, x, jax.random.key(0)),
        lambda fitted, x: jax.grad(lambda x: transforms.inverse(fitted, x).sum())(x),
    ):
        assert products(jax.make_jaxpr(function)(fitted, z).jaxpr) == []


def test_sizes_by_backend():
    assert sizes("cpu") == CPU and sizes("gpu") == sizes("tpu") == ACCELERATOR
    assert sizes() == CPU
    assert all(getattr(ACCELERATOR, f.name) > getattr(CPU, f.name) for f in dataclasses.fields(CPU))


@pytest.mark.parametrize("at_once", [2, 3, 100])
def test_chunks_sampled_together_are_the_same(at_once):
    def sample(key, num):
        return jax.random.normal(key, (num, 2))

    draw = functools.partial(sample_in_chunks, sample, num_samples=13, chunk_size=3)
    alone = draw(jax.random.key(0))
    np.testing.assert_array_equal(draw(jax.random.key(0), chunks_at_once=at_once), alone)


def test_episodes_rolled_out_together_are_the_same(monkeypatch):
    teams = load_teams(assets("2halfcheetah"))
    spec = TaskSpec(name="small", num_agents=2, state_dim=2, obs_dim=12, action_dim=3, episode_length=4)
    schedule = np.stack([np.arange(40) % 4, np.arange(40) % 17], axis=1)
    mesh = jax.make_mesh((1,), ("seed",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])

    def reset(key):
        state = jax.random.normal(key, (2,))
        return dataclasses.replace(DRIFT.reset(key), state=state, obs=jnp.tile(state, (2, 6)))

    def step(now, action):
        state = now.state + jnp.sum(action, axis=0)[:2]
        time = now.time + 1
        return dataclasses.replace(
            now, state=state, obs=jnp.tile(state, (2, 6)), reward=jnp.sum(action), time=time, truncated=time >= 4
        )

    env = DRIFT._replace(reset=reset, step=step, spec=spec)

    def record():
        progress = []
        with jax.debug_key_reuse(False):
            episodes = named.record(env, teams, schedule, mesh, 0, progress.append)
        return episodes, progress

    alone, progress = record()
    assert progress == [16, 16, 8]
    monkeypatch.setattr(named, "sizes", lambda: dataclasses.replace(CPU, episodes=32))
    together, progress = record()
    assert progress == [32, 8]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), vars(together), vars(alone))


def test_simulations_together_measure_the_same(monkeypatch):
    episodes = drift_episodes(8)
    reward = episodes.reward.reshape(8, -1)

    def windows(leaf):
        return jnp.asarray(leaf.reshape(*reward.shape, *leaf.shape[1:]))

    trajectory = Trajectory(
        **{name: windows(getattr(episodes, name)) for name in ("state", "obs", "action", "reward", "terminal")}
    )
    measure = functools.partial(evaluation.sample_quality, DRIFT, trajectory, trajectory)
    few = measure()
    monkeypatch.setattr(evaluation, "sizes", lambda: dataclasses.replace(CPU, simulations=4))
    jax.tree.map(np.testing.assert_array_equal, few, measure())
