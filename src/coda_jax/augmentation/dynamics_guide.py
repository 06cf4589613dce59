"""A guide by the score of a learned one-step model, for trajectories that are also guided toward a policy.

The policy's score moves the actions, and the denoiser lets the states follow in part. Beside it, the score of the
one-step model moves each next state, its observations and each reward toward what the model predicts. Not in the paper.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax import transforms
from coda_jax.diffusion.guidance import Guide
from coda_jax.dynamics.ensemble import Dynamics, DynamicsModel
from coda_jax.envs.base import Environment


class DynamicsScore(NamedTuple):
    """A one-step model whose score guides samples.

    env:    the task of the data, for the observations of predicted states.
    model:  the ensemble's functions.
    weight: largest length of the score's direction; that of the policy's is 1.

    Examples:
        >>> from coda_jax.envs.coordination import same_side
        >>> env = same_side()
        >>> cj.DynamicsScore(env, cj.make_dynamics(env.spec), weight=2.0).weight
        2.0
    """

    env: Environment
    model: DynamicsModel
    weight: float = 1.0


def dynamics_guide(score: DynamicsScore, dynamics: Dynamics, transform: transforms.CdfTransform) -> Guide:
    """The score of the one-step model at the denoised trajectory, with respect to the consequences of each step.

    The consequences y of a step are the next state, its observations and the reward, in their standard deviations. The
    model's likelihood is log N(y; f(s, a), sigma^2), with f the ensemble's mean. The state and the actions from which a
    step follows are held fixed, as observations are in the policy's score, so the gradient is (f(s, a) - y) / sigma^2.
    Like that of the policy it is scaled to unit length over each trajectory, in which sigma cancels; but it is at most
    as long as f(s, a) - y itself, or steps of few, large noise levels would jump to and fro across the predictions.

    Args:
        score: the model, and its task.
        dynamics: the fitted ensemble.
        transform: from the data's units to the denoiser's.
    """
    spec = score.env.spec
    # Cells of the table have equal probabilities.
    std = jnp.std(jnp.mean(transform.values, axis=-1), axis=-1)
    unit = jnp.where(std > 0.0, std, jnp.inf)

    def guide(denoised: Float[Array, "B H C"]) -> Float[Array, "B H C"]:
        tokens = transforms.inverse(transform, denoised)
        trajectory = transforms.unpack(tokens, spec)
        predicted = score.model.predict(dynamics, trajectory.state, trajectory.action)
        following = predicted.state[:, :-1]
        obs = jax.vmap(jax.vmap(lambda state: score.env.set_state(state).obs))(following)
        expected = dataclasses.replace(
            trajectory,
            state=trajectory.state.at[:, 1:].set(following),
            obs=trajectory.obs.at[:, 1:].set(obs),
            reward=predicted.reward,
        )
        g = (transforms.pack(expected) - tokens) / unit[None, None]
        length = jnp.sqrt(jnp.sum(g**2, axis=(1, 2), keepdims=True))
        return score.weight * g / jnp.maximum(length, 1.0)

    return guide
