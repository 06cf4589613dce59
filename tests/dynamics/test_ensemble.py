"""The ensemble recovers dynamics whose mean, noise and ends are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.data.dataset import episodes_from_arrays, make_dataset
from coda_jax.dynamics.ensemble import DynamicsConfig, make_dynamics, sample_steps
from coda_jax.ranges import RangeError
from coda_jax.types import TaskSpec

SPEC = TaskSpec(name="line", num_agents=2, state_dim=2, obs_dim=1, action_dim=1, episode_length=5)
NOISE = 0.1
CLOCK = 0.2


def line_episodes(num_episodes: int, length: int = 5):
    """A coordinate moves by half the actions' sum and noise, the other is a clock; beyond 1 an episode truly ends."""
    rng = np.random.default_rng(0)
    rows: dict[str, list] = {name: [] for name in ("state", "action", "reward", "terminal", "truncation")}
    for _ in range(num_episodes):
        x = rng.normal()
        for t in range(length):
            action = rng.uniform(-1, 1, size=(2, 1))
            has_ended = x > 1.0
            rows["state"].append([x, CLOCK * t])
            rows["action"].append(action)
            rows["reward"].append(2.0 * x - action[0, 0])
            rows["terminal"].append(float(has_ended))
            rows["truncation"].append(float(t == length - 1 and not has_ended))
            x = x + 0.5 * action.sum() + NOISE * rng.normal()
            if has_ended:
                break
    arrays = {name: np.array(values, np.float32) for name, values in rows.items()}
    return episodes_from_arrays(obs=np.zeros((len(arrays["state"]), 2, 1), np.float32), **arrays)


@pytest.fixture(scope="module")
def fitted():
    model = make_dynamics(SPEC, DynamicsConfig(num_members=2, widths=(64, 64), num_updates=1500, batch_size=256))
    return model, jax.jit(model.fit)(make_dataset(line_episodes(3000), 2), jax.random.key(0))


@pytest.fixture(scope="module")
def questions():
    """States and joint actions inside the data."""
    key_state, key_action = jax.random.split(jax.random.key(1))
    x = jax.random.uniform(key_state, (500,), minval=-2.0, maxval=0.8)
    return jnp.stack([x, jnp.full(500, CLOCK)], axis=1), jax.random.uniform(key_action, (500, 2, 1), minval=-1.0)


def test_means_are_those_of_the_dynamics(fitted, questions):
    model, dynamics = fitted
    state, action = questions
    predicted = model.predict(dynamics, state, action)
    expected = state[:, 0] + 0.5 * jnp.sum(action, axis=(1, 2))
    assert jnp.sqrt(jnp.mean((predicted.state[:, 0] - expected) ** 2)) < 0.3 * NOISE
    assert jnp.sqrt(jnp.mean((predicted.reward - 2.0 * state[:, 0] + action[:, 0, 0]) ** 2)) < 0.05
    np.testing.assert_allclose(predicted.state[:, 1], state[:, 1] + CLOCK, atol=1e-5)  # a constant change is exact


def test_the_spread_is_calibrated(fitted, questions):
    model, dynamics = fitted
    std = model.predict(dynamics, *questions).std
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(std[:, 0] ** 2)), NOISE, rtol=0.15)
    np.testing.assert_allclose(std[:, 1], 0.0, atol=1e-6)


def test_members_disagree_where_there_are_no_data(fitted, questions):
    model, dynamics = fitted
    state, action = questions
    near = model.predict(dynamics, state, action).disagreement[:, 0]
    far = model.predict(dynamics, state - jnp.array([[20.0, 0.0]]), action).disagreement[:, 0]
    assert jnp.median(far) > 5.0 * jnp.median(near)


def test_true_ends_are_told_from_their_state(fitted):
    model, dynamics = fitted
    x = jnp.concatenate([jnp.linspace(-2.0, 0.9, 50), jnp.linspace(1.1, 2.5, 50)])
    state = jnp.stack([x, jnp.full(100, CLOCK)], axis=1)
    terminal = model.predict(dynamics, state, jnp.zeros((100, 2, 1))).terminal > 0.5
    np.testing.assert_array_equal(terminal, x > 1.0)


def test_steps_are_followed_within_their_episode_and_ends_are_reached():
    episodes = line_episodes(20)
    now, last = sample_steps(make_dataset(episodes, 2), jax.random.key(0), 5000)
    assert not np.isin(now, episodes.bounds[1:] - 1).any()
    lengths = np.diff(episodes.bounds)
    ends = (episodes.bounds[1:] - 1)[lengths >= 2]
    assert set(ends) <= set(np.asarray(last).tolist())


def confounded_episodes(num_episodes: int):
    """A walk whose reward is its place after a step; the recorded actions fall with the place, as a braking agent's."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1.0, 1.0, size=(num_episodes, 1))
    rows: dict[str, list] = {name: [] for name in ("state", "action", "reward")}
    for t in range(5):
        action = np.clip(-x[..., None] + 0.02 * rng.normal(size=(num_episodes, 2, 1)), -1.0, 1.0)
        rows["state"].append(np.concatenate([x, np.full_like(x, CLOCK * t)], axis=1))
        rows["action"].append(action)
        x = x + 0.1 * action[:, :1, 0]
        rows["reward"].append(x[:, 0])
    arrays = {name: np.stack(values, axis=1).astype(np.float32) for name, values in rows.items()}
    arrays = {name: values.reshape(-1, *values.shape[2:]) for name, values in arrays.items()}
    ends = np.tile([0.0, 0.0, 0.0, 0.0, 1.0], num_episodes).astype(np.float32)
    obs = np.zeros((5 * num_episodes, 2, 1), np.float32)
    return episodes_from_arrays(obs=obs, terminal=0.0 * ends, truncation=ends, **arrays)


def test_with_reward_inputs_no_reward_is_ascribed_to_what_goes_with_it():
    """The second agent moves nothing; recorded actions tell the reward as well as the place that causes it."""
    config = DynamicsConfig(num_members=2, widths=(32, 32), num_updates=600)
    dataset = make_dataset(confounded_episodes(500), 5)
    state = jnp.stack([jnp.linspace(-0.5, 0.5, 50), jnp.full(50, CLOCK)], axis=1)
    action = jnp.stack([jnp.zeros((50, 1)), jnp.ones((50, 1))], axis=1)  # in the data it goes with places near -1

    def error(config: DynamicsConfig) -> float:
        model = make_dynamics(SPEC, config)
        predicted = model.predict(jax.jit(model.fit)(dataset, jax.random.key(0)), state, action)
        return float(jnp.sqrt(jnp.mean((predicted.reward - predicted.state[:, 0]) ** 2)))

    told = error(dataclasses.replace(config, reward_inputs=(0,)))
    assert told < 0.02
    assert error(config) > 10.0 * told


def test_the_spread_of_rewards_is_that_of_their_own_networks():
    config = DynamicsConfig(num_members=2, widths=(64, 64), num_updates=1500, reward_inputs=(0, 2))
    model = make_dynamics(SPEC, config)
    dynamics = jax.jit(model.fit)(make_dataset(line_episodes(3000), 2), jax.random.key(0))
    x, action = jnp.linspace(-1.5, 0.5, 200), jnp.zeros((200, 2, 1))
    predicted = model.predict(dynamics, jnp.stack([x, jnp.full(200, CLOCK)], axis=1), action)
    # The reward is that of the place before the step, which the place after it tells but for the noise of the step,
    # and for half of the second agent's action, uniform on [-1, 1], which the reward's network does not see.
    hidden = 2.0 * np.sqrt(NOISE**2 + 0.25 / 3.0)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(predicted.std[:, -1] ** 2)), hidden, rtol=0.15)


def test_reward_inputs_beyond_state_and_actions_are_refused():
    with pytest.raises(RangeError, match=r"reward_inputs is \(4,\); indices of the 4 features"):
        make_dynamics(SPEC, DynamicsConfig(reward_inputs=(4,)))


def test_single_steps_have_no_dynamics():
    model = make_dynamics(SPEC, DynamicsConfig(num_updates=2))
    with pytest.raises(ValueError, match="at least two steps"):
        model.fit(make_dataset(line_episodes(5), 1), jax.random.key(0))
