"""Games of one action an agent in which learners have known answers, and their training on fixed data."""

import jax
import jax.numpy as jnp
import numpy as np

from coda_jax.marl.learner import uniform_weights
from coda_jax.types import TaskSpec, Trajectory

GAME = TaskSpec(name="game", num_agents=2, state_dim=1, obs_dim=1, action_dim=1, episode_length=1)


def game_windows(action, state=None, reward=None, terminal=None) -> Trajectory:
    """Windows `[B, H, ...]` of a game from actions `[B, H, A]`, by default of the reward x y; agents see the state."""
    state = np.zeros(action.shape[:2]) if state is None else state
    as_f32 = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    return Trajectory(
        state=as_f32(state[..., None]),
        obs=as_f32(np.repeat(state[..., None, None], action.shape[-1], axis=-2)),
        action=as_f32(action[..., None]),
        reward=as_f32(action[..., 0] * action[..., 1] if reward is None else reward),
        terminal=as_f32(np.zeros(action.shape[:2]) if terminal is None else terminal),
    )


def train(learner, seed, trajectory, num_updates):
    """Full-batch updates on fixed data; the trained state and the metrics of every update."""
    weights = uniform_weights(trajectory.reward.shape[0])

    def step(state, key):
        return learner.update(state, trajectory, weights, key)

    key_init, key_updates = jax.random.split(jax.random.key(seed))
    keys = jax.random.split(key_updates, num_updates)
    return jax.jit(lambda key, keys: jax.lax.scan(step, learner.init(key), keys))(key_init, keys)
