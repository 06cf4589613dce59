import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.marl.input_scale import raw_inputs, standardised_inputs
from coda_jax.marl.learner import uniform_weights
from coda_jax.marl.maddpg_bc import MaddpgBcConfig, maddpg_bc
from coda_jax.types import TaskSpec, Trajectory

TASK = TaskSpec(name="toy", num_agents=2, state_dim=3, obs_dim=4, action_dim=2, episode_length=10)
SMALL = MaddpgBcConfig(policy_linear_width=8, policy_hidden_width=8, critic_widths=(16, 16))


def steps(*shape: int) -> Trajectory:
    """Steps in arbitrary units, with one constant state feature."""
    keys = jax.random.split(jax.random.key(0), 4)
    unit = jnp.array([100.0, 0.01, 0.0])
    return Trajectory(
        state=7.0 + unit.reshape(*[1] * len(shape), 3) * jax.random.normal(keys[0], (*shape, 3)),
        obs=-3.0 + 5.0 * jax.random.normal(keys[1], (*shape, 2, 4)),
        action=jax.random.uniform(keys[2], (*shape, 2, 2), minval=-1.0),
        reward=jax.random.normal(keys[3], shape),
        terminal=jnp.zeros(shape),
    )


def test_inputs_are_standardised():
    data = steps(5000)
    scale = standardised_inputs(data)
    state, obs = scale.state(data.state), scale.obs(data.obs)
    assert np.abs(np.mean(state, axis=0)).max() < 1e-3
    np.testing.assert_allclose(np.std(state, axis=0), [1.0, 0.01 / 0.011, 0.0], atol=0.03)
    assert np.abs(np.mean(obs, axis=0)).max() < 1e-3
    np.testing.assert_allclose(np.std(obs, axis=0), 1.0, atol=0.01)


@pytest.mark.slow
def test_a_learner_of_standardised_inputs_is_a_learner_of_standardised_data():
    windows = steps(6, 4)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), windows)
    scale = standardised_inputs(flat)
    scaled_windows = dataclasses.replace(windows, state=scale.state(windows.state), obs=scale.obs(windows.obs))
    obs = flat.obs[0]
    trained, actions = [], []
    for inputs, data, seen in ((scale, windows, obs), (raw_inputs(TASK), scaled_windows, scale.obs(obs))):
        learner = maddpg_bc(TASK, SMALL, inputs)
        state = jax.jit(learner.init)(jax.random.key(1))
        for update in range(3):
            state, _ = jax.jit(learner.update)(state, data, uniform_weights(6), jax.random.key(update))
        trained.append((state.policy, state.critics))
        actions.append(learner.act(state, seen, learner.initial_carry(()))[0])
    for one, other in zip(*map(jax.tree.leaves, trained), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(*actions, atol=1e-6)
