import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.augmentation.base import Augmentation
from coda_jax.augmentation.proximal_replay import priorities, proximal_replay
from coda_jax.coda import make_trainer
from coda_jax.data.dataset import one_step_dataset, sample_windows
from coda_jax.envs.polynomial import DatasetConfig, environment, reward, sample_dataset, twin_peaks
from coda_jax.marl.stateless_maddpg import StatelessMaddpgConfig, stateless_maddpg
from coda_jax.schedule import CodaConfig
from tests.drift import SPEC

GAME = twin_peaks()
ENV = environment(GAME)
CRITIC = functools.partial(reward, GAME)


@pytest.fixture(scope="module")
def dataset():
    return one_step_dataset(sample_dataset(GAME, DatasetConfig("uniform"), jax.random.key(0)))


def test_priorities_fall_with_the_mean_distance_of_joint_actions_to_a_floor():
    horizon, shape = 3, (SPEC.num_agents, SPEC.action_dim)
    mu = jnp.zeros((4, horizon, *shape))
    offsets = jnp.array([0.0, 0.1, -0.25, 2.0])
    action = mu + offsets[:, None, None, None]
    expected = [1.0, np.exp(-0.16), np.exp(-1.0), 1e-3]
    np.testing.assert_allclose(priorities(mu, action, 4.0, 1e-3), expected, rtol=1e-5)
    one_token = mu.at[0, 0].add(0.3)  # a third of the distance
    np.testing.assert_allclose(priorities(mu, one_token, 4.0, 1e-3)[0], np.exp(-0.16), rtol=1e-5)


@pytest.mark.slow
def test_windows_are_drawn_by_their_priorities(dataset):
    """The mean absolute distance of draws is that of the whole dataset, weighted by its priorities."""
    theta = (0.3, -0.2)
    learner = stateless_maddpg(ENV.spec, CRITIC, StatelessMaddpgConfig(theta))
    state = learner.init(jax.random.key(0))
    drawn = proximal_replay(learner, 1).sample(state, dataset, (), jnp.float32(0.0), jax.random.key(1), 4000)
    recorded = np.asarray(dataset.steps.action)[..., 0]
    distance = np.abs(recorded - theta).mean(axis=-1)
    weights = np.maximum(np.exp(-((4.0 * distance) ** 2)), 1e-3)
    expected = np.sum(weights * distance) / weights.sum()
    found = np.abs(np.asarray(drawn.action)[:, 0, :, 0] - theta).mean()
    assert distance.mean() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0.03)
    known = {tuple(row) for row in recorded}
    assert all(tuple(row) in known for row in np.asarray(drawn.action)[:, 0, :, 0])
    np.testing.assert_allclose(drawn.reward[:, 0], CRITIC(drawn.action[:, 0]), rtol=1e-5)


def uniform_replay() -> Augmentation:
    return Augmentation(lambda state, dataset, prior, guidance, key, num: sample_windows(dataset, key, num, 1))


@pytest.mark.slow
@pytest.mark.parametrize("start", [(-0.3, -0.05), (0.9, 0.2)])
def test_on_twin_peaks_agents_leave_the_mean_of_the_data(dataset, start):
    """Uniform data: a best response under all of them ends at their mean 0, where R = 0; near ones lead to a peak.

    Beside data of mean theta and variance v the fixed point x = y = s of Eq. 22-23 has s^2 = (C - 2A) / 2B - v. For
    densities exp(-(k d)^2) of the mean distance d of two agents, k = 4, an action has the variance v = 1 / 12.
    """
    learner = stateless_maddpg(ENV.spec, CRITIC, StatelessMaddpgConfig(start, learning_rate=0.05))
    config = CodaConfig(
        horizon=1,
        batch_size=256,
        mix_ratio=1.0,
        num_trajectories=256,
        num_rounds=150,
        epochs_per_round=1,
        updates_per_epoch=1,
        evaluation_episodes=0,
        reference_trajectories=0,
        reuse=False,
    )

    def trained(augmentation):
        trainer = make_trainer(ENV, learner, augmentation, config)
        path = jax.jit(functools.partial(trainer.run, callback=lambda state, report: state.learner.theta[:, 0]))
        _, theta = path(trainer.init(jax.random.key(1)), dataset, ())
        return np.asarray(theta)[-50:].mean(axis=0)

    peak = np.sign(sum(start)) * np.sqrt(3 / 8 - 1 / 12)
    np.testing.assert_allclose(trained(proximal_replay(learner, 1)), [peak, peak], atol=0.06)
    np.testing.assert_allclose(trained(uniform_replay()), [0.0, 0.0], atol=0.06)
    assert reward(GAME, jnp.full((2, 1), peak)) > 0.9 * reward(GAME, jnp.full((2, 1), np.sqrt(3 / 8)))
