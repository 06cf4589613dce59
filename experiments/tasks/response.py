"""Synthetic data whose consequences follow the actions in part, built artificially in the true environment.

A recorded window with the policy's actions in place of the recorded ones has a *response* of 0: its states are those of
the recorded actions. The oracle has a response of 1. Between them the environment is moved by recorded actions plus a
share of the change. So a trainer can be asked what a sampler's response is worth, everything else being exact.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.augmentation.base import Augmentation
from coda_jax.data.dataset import Dataset, sample_windows
from coda_jax.envs.base import Environment, EnvState
from coda_jax.marl.learner import Carry, Learner, LearnerState
from coda_jax.types import PRNGKey, Trajectory


def partial_response(env: Environment, learner: Learner, horizon: int, noise: float) -> Augmentation:
    """Trajectories of the joint policy from recorded states, whose consequences follow its actions in part.

    The `prior` is the response, a scalar: 0 for the consequences of the recorded actions, 1 for those of the policy's.

    Args:
        env: the environment of the data.
        learner: whose policy acts, its memory empty at first.
        horizon: H.
        noise: standard deviation of Gaussian noise on the policy's actions.
    """

    def sample(
        state: LearnerState,
        dataset: Dataset,
        prior: Float[Array, ""],
        guidance: Float[Array, ""],
        key: PRNGKey,
        num: int,
    ) -> Trajectory:
        del guidance
        key_windows, key_noise = jax.random.split(key)
        windows = sample_windows(dataset, key_windows, num, horizon)
        deviation = noise * jax.random.normal(key_noise, windows.action.shape)

        def step(
            carry: tuple[EnvState, Carry], tokens: tuple[Array, Array]
        ) -> tuple[tuple[EnvState, Carry], Trajectory]:
            (current, memory), (recorded, deviation) = carry, tokens
            action, memory = learner.act(state, current.obs, memory)
            action = jnp.clip(action + deviation, -1.0, 1.0)
            following = jax.vmap(env.step)(current, recorded + prior * (action - recorded))
            token = Trajectory(
                state=current.state,
                obs=current.obs,
                action=action,
                reward=following.reward,
                terminal=following.terminal.astype(jnp.float32),
            )
            return (following, memory), token

        first = (jax.vmap(env.set_state)(windows.state[:, 0]), learner.initial_carry((num,)))
        over_time = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (windows.action, deviation))
        _, tokens = jax.lax.scan(step, first, over_time)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), tokens)

    return Augmentation(sample, is_renewed=True)
