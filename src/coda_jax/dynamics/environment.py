"""The environment that a learned model makes: its steps are predictions, its observations those of the true task."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.dynamics.ensemble import Dynamics, DynamicsModel
from coda_jax.envs.base import Environment, EnvState


def learned_environment(env: Environment, model: DynamicsModel, dynamics: Dynamics) -> Environment:
    """The task `env` with the steps of a learned model: the ensemble's mean, without noise.

    Observations of predicted states come from `env.set_state`, so they are exact; nothing else of `env` is used.
    Episodes end where the model gives an end the larger probability, and at the time limit, counted from `set_state`.

    Args:
        env: the task of the data.
        model: the ensemble's functions.
        dynamics: the fitted ensemble.
    """

    def set_state(state: Float[Array, "S"]) -> EnvState:
        return dataclasses.replace(env.set_state(state), physics=())

    def step(now: EnvState, action: Float[Array, "A U"]) -> EnvState:
        predicted = model.predict(dynamics, now.state, jnp.clip(action, -1.0, 1.0))
        time = now.time + 1
        return dataclasses.replace(
            set_state(predicted.state),
            reward=predicted.reward,
            terminal=predicted.terminal > 0.5,
            truncated=time >= env.spec.episode_length,
            time=time,
        )

    return Environment(lambda key: dataclasses.replace(env.reset(key), physics=()), step, set_state, env.spec)
