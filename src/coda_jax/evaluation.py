"""Measuring a joint policy: its returns in the environment, and how likely it makes the actions of trajectories."""

from jaxtyping import Array, Float

from coda_jax.diffusion.guidance import gaussian_log_prob
from coda_jax.envs.mamujoco import Environment
from coda_jax.envs.rollout import episode_returns
from coda_jax.marl.learner import Learner, LearnerState, unroll
from coda_jax.types import PRNGKey, Trajectory


def policy_returns(
    env: Environment, learner: Learner, state: LearnerState, key: PRNGKey, num_episodes: int
) -> Float[Array, "num_episodes"]:
    """Undiscounted returns of whole episodes of the joint policy without noise; the key (consumed) sets the starts."""

    def act(obs: Array, carry: Array, key: PRNGKey) -> tuple[Array, Array]:
        del key
        return learner.act(state, obs, carry)

    return episode_returns(env, act, learner.initial_carry((num_episodes,)), key, num_episodes)


def action_log_likelihood(learner: Learner, state: LearnerState, trajectory: Trajectory) -> Float[Array, "B"]:
    """Sums log N(a; mu(o), 1) of the actions of trajectories `[B, H, ...]` over horizon and agents (Sec. 6.2.1)."""
    return gaussian_log_prob(trajectory.action, unroll(learner, state, trajectory.obs))
