"""With a model that is right, trajectories by the model are those of the environment."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.augmentation.base import Augmentation
from coda_jax.augmentation.model_based import PriorWithDynamics, model_consequences, model_rollouts
from coda_jax.augmentation.oracle import oracle
from coda_jax.data.dataset import make_dataset, sample_windows
from coda_jax.dynamics.ensemble import Dynamics, DynamicsModel, Prediction
from coda_jax.dynamics.environment import learned_environment
from coda_jax.marl.input_scale import raw_inputs
from coda_jax.marl.learner import follow
from coda_jax.marl.maddpg_bc import MaddpgBcConfig, maddpg_bc
from tests.drift import DRIFT, SPEC, drift_episodes

HORIZON = 4
DYNAMICS = Dynamics(
    params=(), input_mean=jnp.zeros(4), input_std=jnp.ones(4), target_mean=jnp.zeros(3), target_std=jnp.ones(3)
)


def _predict(dynamics, state, action) -> Prediction:
    """The true step of the environment."""
    del dynamics
    zero = jnp.zeros((*state.shape[:-1], 3))
    return Prediction(state + 0.1 * action[..., 0], jnp.sum(action, axis=(-2, -1)), zero[..., 0], zero, zero)


EXACT = DynamicsModel(fit=lambda dataset, key: DYNAMICS, predict=_predict)


@pytest.fixture(scope="module")
def setting():
    learner = maddpg_bc(SPEC, MaddpgBcConfig(), raw_inputs(SPEC))
    return learner, learner.init(jax.random.key(0)), make_dataset(drift_episodes(20), HORIZON)


def test_an_exact_model_is_the_environment():
    learned = learned_environment(DRIFT, EXACT, DYNAMICS)
    true, modelled = DRIFT.reset(jax.random.key(0)), learned.reset(jax.random.key(0))
    for action in jax.random.uniform(jax.random.key(1), (SPEC.episode_length, 2, 1), minval=-1.0):
        true, modelled = DRIFT.step(true, action), learned.step(modelled, action)
        jax.tree.map(np.testing.assert_allclose, modelled, true)
    assert modelled.truncated


def test_roll_outs_in_an_exact_model_are_the_oracle_s(setting):
    learner, state, dataset = setting
    key = jax.random.key(3)
    modelled = model_rollouts(DRIFT, EXACT, learner, HORIZON, 0.2).sample(
        state, dataset, DYNAMICS, jnp.zeros(()), key, 7
    )
    true = oracle(DRIFT, learner, HORIZON, 0.2).sample(state, dataset, (), jnp.zeros(()), jax.random.clone(key), 7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), modelled, true)
    assert jnp.std(true.action - oracle_actions(learner, state, true)) > 0.1


def oracle_actions(learner, state, trajectory):
    """The policy's actions along a trajectory, its memory empty at first."""
    memory, actions = learner.initial_carry((len(trajectory.reward),)), []
    for t in range(HORIZON):
        action, memory = learner.act(state, trajectory.obs[:, t], memory)
        actions.append(action)
    return jnp.stack(actions, axis=1)


def joined(trajectories, num_segments):
    """Roll-outs whose trajectories are put together again."""
    return jax.tree.map(lambda x: x.reshape(-1, num_segments * HORIZON, *x.shape[2:]), trajectories)


def test_trajectories_of_one_roll_out_follow_each_other(setting):
    """A roll-out is the same with its steps in one trajectory or in three; what is too many is left out."""
    learner, state, dataset = setting
    key = jax.random.key(3)

    def drawn(horizon, num, **settings):
        source = oracle(DRIFT, learner, horizon, 0.2, **settings)
        return source.sample(state, dataset, (), jnp.zeros(()), jax.random.clone(key), num)

    in_three, whole = drawn(HORIZON, 6, num_segments=3), drawn(3 * HORIZON, 2)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), joined(in_three, 3), whole)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:4]), drawn(HORIZON, 4, num_segments=3), in_three)


def test_guided_trajectories_are_continued_by_the_policy_alone(setting):
    learner, state, dataset = setting

    def replay(learner_state, dataset, prior, guidance, key, num):
        return sample_windows(dataset, key, num, HORIZON)

    key, prior = jax.random.key(5), PriorWithDynamics(prior=(), dynamics=DYNAMICS)
    source = Augmentation(replay)

    def made(num, num_segments):
        result = model_consequences(source, DRIFT, EXACT, learner, num_segments=num_segments)
        return result.sample(state, dataset, prior, jnp.zeros(()), jax.random.clone(key), num)

    alone, whole = made(4, 1), joined(made(8, 2), 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[:, :HORIZON], atol=1e-6), alone, whole)
    np.testing.assert_allclose(whole.state[:, 1:], whole.state[:, :-1] + 0.1 * whole.action[:, :-1, :, 0], atol=1e-6)
    _, memory = follow(learner, state, alone.obs, learner.initial_carry((4,)))
    expected, _ = follow(learner, state, whole.obs[:, HORIZON:], memory)
    np.testing.assert_allclose(whole.action[:, HORIZON:], expected, atol=1e-5)


def test_consequences_follow_from_the_actions(setting):
    """Whatever states, rewards and ends an augmentation makes, the model's steps replace them; deviations stay."""
    learner, state, dataset = setting

    def nonsense(learner_state, dataset, prior, guidance, key, num):
        del learner_state, prior, guidance
        windows = sample_windows(dataset, key, num, HORIZON)
        return dataclasses.replace(windows, reward=windows.reward + 7.0, terminal=windows.terminal + 1.0)

    source = Augmentation(nonsense, is_renewed=False)
    result = model_consequences(source, DRIFT, EXACT, learner)
    key, prior = jax.random.key(5), PriorWithDynamics(prior=(), dynamics=DYNAMICS)
    made = result.sample(state, dataset, prior, jnp.zeros(()), key, 9)
    recorded = source.sample(state, dataset, (), jnp.zeros(()), jax.random.clone(key), 9)
    assert not result.is_renewed
    np.testing.assert_allclose(made.state[:, 0], recorded.state[:, 0], atol=1e-6)
    np.testing.assert_allclose(made.state[:, 1:], made.state[:, :-1] + 0.1 * made.action[:, :-1, :, 0], atol=1e-6)
    np.testing.assert_allclose(made.reward, jnp.sum(made.action, axis=(2, 3)), atol=1e-6)
    np.testing.assert_array_equal(made.terminal, 0.0)
    deviation = recorded.action - oracle_actions(learner, state, recorded)
    expected = jnp.clip(oracle_actions(learner, state, made) + deviation, -1.0, 1.0)
    np.testing.assert_allclose(made.action, expected, atol=1e-5)


def test_a_recorded_prefix_stays_and_warms_the_policy_s_memory(setting):
    """Recorded windows in an exact model: the prefix is kept; then actions follow the memory of the whole window."""
    learner, state, dataset = setting

    def replay(learner_state, dataset, prior, guidance, key, num):
        return sample_windows(dataset, key, num, HORIZON)

    key, prior = jax.random.key(5), PriorWithDynamics(prior=(), dynamics=DYNAMICS)
    source = Augmentation(replay)
    result = model_consequences(source, DRIFT, EXACT, learner, prefix=2)
    made = result.sample(state, dataset, prior, jnp.zeros(()), key, 9)
    recorded = source.sample(state, dataset, (), jnp.zeros(()), jax.random.clone(key), 9)
    jax.tree.map(lambda m, r: np.testing.assert_array_equal(m[:, :2], r[:, :2]), made, recorded)
    np.testing.assert_allclose(made.state[:, 2], recorded.state[:, 2], atol=1e-6)
    np.testing.assert_allclose(made.state[:, 3], made.state[:, 2] + 0.1 * made.action[:, 2, :, 0], atol=1e-6)
    deviation = recorded.action - oracle_actions(learner, state, recorded)
    expected = jnp.clip(oracle_actions(learner, state, made) + deviation, -1.0, 1.0)
    np.testing.assert_allclose(made.action[:, 2:], expected[:, 2:], atol=1e-5)
