"""Standardisation of network inputs by the mean and standard deviation of the dataset (Fujimoto and Gu 2021)."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.types import TaskSpec, Trajectory

MIN_STD = 1e-3
"""Added to every standard deviation, so that constant features stay finite."""


@chex.dataclass(frozen=True)
class InputScale:
    """Means and standard deviations of the networks' inputs.

    state_mean, state_std: `[*batch, S]` of the global state.
    obs_mean, obs_std:     `[*batch, A, O]` of the local observations.
    """

    state_mean: Float[Array, "*batch S"]
    state_std: Float[Array, "*batch S"]
    obs_mean: Float[Array, "*batch A O"]
    obs_std: Float[Array, "*batch A O"]

    def state(self, state: Float[Array, "*batch S"]) -> Float[Array, "*batch S"]:
        """Standardises global states."""
        mean, std = (x.reshape(*[1] * (state.ndim - 1), -1) for x in (self.state_mean, self.state_std))
        return (state - mean) / std

    def obs(self, obs: Float[Array, "*batch A O"]) -> Float[Array, "*batch A O"]:
        """Standardises local observations."""
        mean, std = (x.reshape(*[1] * (obs.ndim - 2), *x.shape) for x in (self.obs_mean, self.obs_std))
        return (obs - mean) / std


def raw_inputs(task: TaskSpec) -> InputScale:
    """The scale that leaves inputs in the environment's units.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, environment
        >>> env = environment(MULTIPLICATION)
        >>> cj.raw_inputs(env.spec).obs(jnp.zeros((5, 2, 0))).shape
        (5, 2, 0)
    """
    state, obs = (task.state_dim,), (task.num_agents, task.obs_dim)
    return InputScale(
        state_mean=jnp.zeros(state), state_std=jnp.ones(state), obs_mean=jnp.zeros(obs), obs_std=jnp.ones(obs)
    )


def standardised_inputs(steps: Trajectory) -> InputScale:
    """The scale of a dataset's steps `[T, ...]`.

    Examples:
        >>> steps = cj.Trajectory(
        ...     state=jnp.array([[1.0], [3.0]]), obs=jnp.zeros((2, 2, 1)), action=jnp.zeros((2, 2, 1)),
        ...     reward=jnp.zeros(2), terminal=jnp.zeros(2),
        ... )
        >>> cj.standardised_inputs(steps).state_mean.tolist()
        [2.0]
    """
    return InputScale(
        state_mean=jnp.mean(steps.state, axis=0),
        state_std=jnp.std(steps.state, axis=0) + MIN_STD,
        obs_mean=jnp.mean(steps.obs, axis=0),
        obs_std=jnp.std(steps.obs, axis=0) + MIN_STD,
    )
