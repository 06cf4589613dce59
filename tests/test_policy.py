"""Trained policies as files: the same actions after loading, in numpy from the file alone, and exported."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from coda_jax.artefact import ArtefactError, read_artefact, write_artefact
from coda_jax.envs.rollout import episode_returns
from coda_jax.evaluation import policy_returns
from coda_jax.marl.input_scale import InputScale
from coda_jax.marl.maddpg_bc import MaddpgBcConfig, maddpg_bc
from coda_jax.policy import export_policy, load_policy, policy_of, save_policy
from coda_jax.types import TaskSpec
from tests.drift import DRIFT, SPEC

TASK = TaskSpec(name="made-up", num_agents=3, state_dim=4, obs_dim=5, action_dim=2, episode_length=10)
SEEDS = (7, 8)


def learner_and_states(task):
    rng = np.random.default_rng(0)

    def some(*shape):
        return jnp.asarray(rng.uniform(0.5, 2.0, shape), jnp.float32)

    obs = (task.num_agents, task.obs_dim)
    inputs = InputScale(
        state_mean=some(task.state_dim), state_std=some(task.state_dim), obs_mean=some(*obs), obs_std=some(*obs)
    )
    learner = maddpg_bc(task, MaddpgBcConfig(policy_linear_width=6, policy_hidden_width=4), inputs)
    return learner, jax.vmap(learner.init)(jax.random.split(jax.random.key(0), len(SEEDS)))


@pytest.fixture
def saved(tmp_path):
    learner, states = learner_and_states(TASK)
    save_policy(tmp_path / "policy.npz", policy_of(TASK, states, SEEDS, rounds=3))
    return tmp_path / "policy.npz", learner, states


def observations(steps=4, batch=2):
    size = (steps, batch, TASK.num_agents, TASK.obs_dim)
    return jnp.asarray(np.random.default_rng(1).normal(size=size), jnp.float32)


def test_a_loaded_policy_acts_as_the_learner_did(saved):
    path, learner, states = saved
    policy = load_policy(path.parent)
    assert (policy.spec, policy.seeds, policy.rounds) == (TASK, SEEDS, 3)
    for index, seed in enumerate(SEEDS):
        state = jax.tree.map(lambda leaf, index=index: leaf[index], states)
        theirs, mine, act = learner.initial_carry((2,)), policy.initial_carry((2,)), policy.act(seed)
        for obs in observations():
            expected, theirs = learner.act(state, obs, theirs)
            action, mine = act(obs, mine, None)
            np.testing.assert_array_equal(action, expected)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_numpy_alone_plays_the_file(saved):
    """Linear - relu - GRU - relu - Linear - tanh, by hand: an independent reading of the entries' names."""
    path, _, _ = saved
    with np.load(path) as stored:
        arrays = dict(stored)
    seeds = json.loads(str(arrays.pop("description")))["seeds"]
    one = {name: leaf[seeds.index(8)].astype(np.float64) for name, leaf in arrays.items()}
    dense_0, dense_1, (gru,) = (
        "network/params/Dense_0",
        "network/params/Dense_1",
        {name.rsplit("/", 2)[0] for name in one if "/hn/" in name},
    )

    def layer(name, x):
        return x @ one[f"{name}/kernel"] + one.get(f"{name}/bias", 0.0)

    h = np.zeros((2, 3, 4))
    policy = load_policy(path)
    carry, act = policy.initial_carry((2,)), policy.act(8)
    for obs in observations():
        x = (np.asarray(obs, np.float64) - one["obs_mean"]) / one["obs_std"]
        x = np.concatenate([np.broadcast_to(np.eye(3), (2, 3, 3)), x], axis=-1)
        x = np.maximum(layer(dense_0, x), 0)
        r = sigmoid(layer(f"{gru}/ir", x) + layer(f"{gru}/hr", h))
        z = sigmoid(layer(f"{gru}/iz", x) + layer(f"{gru}/hz", h))
        n = np.tanh(layer(f"{gru}/in", x) + r * layer(f"{gru}/hn", h))
        h = (1 - z) * n + z * h
        expected = np.tanh(layer(dense_1, np.maximum(h, 0)))
        action, carry = act(obs, carry, None)
        np.testing.assert_allclose(action, expected, atol=1e-5)


def test_an_exported_policy_acts_alike_for_any_number_of_environments(saved):
    pytest.importorskip("flatbuffers")
    policy = load_policy(saved[0])
    exported = export.deserialize(bytearray(export_policy(policy, 7)))
    for batch in (1, 5):
        (obs,) = observations(1, batch)
        carry = jnp.ones((batch, 3, 4))
        for got, expected in zip(exported.call(obs, carry), policy.act(7)(obs, carry, None), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_its_returns_are_those_of_the_learner(tmp_path):
    learner, states = learner_and_states(SPEC)
    policy = policy_of(SPEC, states, SEEDS, rounds=0)
    one = jax.tree.map(lambda leaf: leaf[1], states)
    with jax.debug_key_reuse(False):
        expected = policy_returns(DRIFT, learner, one, jax.random.key(1), 3)
        found = episode_returns(DRIFT, policy.act(8), policy.initial_carry((3,)), jax.random.key(1), 3)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_some_of_the_seeds_are_taken(saved):
    policy = load_policy(saved[0])
    one = policy.take((8,))
    assert one.seeds == (8,)
    jax.tree.map(np.testing.assert_array_equal, one.weights_of(8), policy.weights_of(8))
    with pytest.raises(ValueError):
        policy.take((3,))


def test_what_is_no_policy_is_refused_in_one_line(saved, tmp_path):
    path = saved[0]
    whole = path.read_bytes()
    with pytest.raises(ArtefactError, match="there is no file"):
        load_policy(tmp_path / "nowhere.npz")
    write_artefact(tmp_path / "prior.npz", "prior", {}, {"a": np.zeros(2)})
    with pytest.raises(ArtefactError, match="is a prior, not a policy"):
        load_policy(tmp_path / "prior.npz")
    for cut in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:cut])
        with pytest.raises(ArtefactError) as error:
            load_policy(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({"seeds": [0, 0]}, r"seeds is \(0, 0\); each must occur once"),
        ({"seeds": [-1, 0]}, r"seeds is \(-1, 0\); each entry must be at least 0"),
        ({"seeds": ["a", "b"]}, "each entry must be a number"),
        ({"seeds": []}, "must have at least 1 entries"),
        ({"rounds": "x"}, "rounds is x; it must be a number"),
        ({"rounds": 0.5}, "rounds is 0.5; it must be a whole number"),
    ],
)
def test_a_faulty_description_is_refused_in_one_line(saved, described, expected):
    path = saved[0]
    description, arrays = read_artefact(path, "policy")
    write_artefact(path, "policy", description | described, arrays)
    with pytest.raises(ArtefactError, match=expected) as error:
        load_policy(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_weights_that_are_not_finite_and_scales_of_zero_are_refused(saved, value):
    path = saved[0]
    description, arrays = read_artefact(path, "policy")
    arrays["obs_std"][0, 0, 0] = value
    write_artefact(path, "policy", description, arrays)
    with pytest.raises(ArtefactError, match="obs_std"):
        load_policy(path)


def test_a_flipped_bit_is_found_or_changes_no_number(saved):
    path = saved[0]
    whole, expected = path.read_bytes(), load_policy(path)
    for position in np.random.default_rng(0).integers(0, len(whole), 60):
        broken = bytearray(whole)
        broken[position] ^= 1
        path.write_bytes(broken)
        try:
            found = load_policy(path)
        except ArtefactError:
            continue
        assert found.seeds == expected.seeds
        jax.tree.map(np.testing.assert_array_equal, found.weights, expected.weights)
