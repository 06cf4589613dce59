"""The oracle: roll-outs of the joint policy in the environment itself, from recorded states.

No offline method can have these. Beside CODA they show the value of on-policy data without any error of a model.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from coda_jax.augmentation.base import Augmentation
from coda_jax.data.dataset import Dataset, sample_windows
from coda_jax.envs.base import Environment, EnvState
from coda_jax.marl.learner import Carry, Learner, LearnerState
from coda_jax.types import PRNGKey, Trajectory

MovedBy = Callable[[Float[Array, "B A U"], Int[Array, ""]], Float[Array, "B A U"]]
"""`(the policy's actions, number of the step) -> the actions that move the environment`."""


def oracle(env: Environment, learner: Learner, horizon: int, noise: float = 0.0, num_segments: int = 1) -> Augmentation:
    """Roll-outs from recorded states, in trajectories of H steps, with an empty memory at first; renewed every round.

    The end of an episode does not stop a roll-out; as everywhere, nothing bootstraps from behind it. The prior is not
    used.

    Args:
        env: the environment of the data.
        learner: whose policy acts.
        horizon: H.
        noise: standard deviation of Gaussian noise on the actions; without any, a critic learns no gradient from them.
        num_segments: trajectories of a roll-out, one after the other. The later ones start where the policy itself has
            come to, not in a recorded state.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> learner = cj.maddpg_bc(env.spec, cj.MaddpgBcConfig(), cj.raw_inputs(env.spec))
        >>> rolled_out = cj.oracle(env, learner, horizon=1)
        >>> state = learner.init(jax.random.key(1))
        >>> rolled_out.sample(state, dataset, (), jnp.float32(0.0), jax.random.key(2), 6).terminal.shape
        (6, 1)
    """

    def sample(
        state: LearnerState, dataset: Dataset, prior: object, guidance: Float[Array, ""], key: PRNGKey, num: int
    ) -> Trajectory:
        del prior, guidance
        num_starts = math.ceil(num / num_segments)
        deviation = jnp.zeros((num_starts, num_segments * horizon, env.spec.num_agents, env.spec.action_dim))
        if noise != 0.0:
            key, key_noise = jax.random.split(key)
            deviation = noise * jax.random.normal(key_noise, deviation.shape)
        start = sample_windows(dataset, key, num_starts, 1).state[:, 0]
        rolled_out = policy_rollouts(env, learner, state, start, learner.initial_carry((num_starts,)), deviation)
        return segments(rolled_out, horizon, num)

    return Augmentation(sample, is_renewed=True)


def segments(rolled_out: Trajectory, horizon: int, num: int) -> Trajectory:
    """The first `num` of the trajectories `[num, H, ...]` that roll-outs `[B, k H, ...]` consist of."""
    num_all = rolled_out.reward.size // horizon  # not left to `reshape`, since games have states without entries
    return jax.tree.map(lambda leaf: leaf.reshape(num_all, horizon, *leaf.shape[2:])[:num], rolled_out)


def policy_rollouts(
    env: Environment,
    learner: Learner,
    learner_state: LearnerState,
    start: Float[Array, "B S"],
    memory: Carry,
    deviation: Float[Array, "B H A U"],
    moved_by: MovedBy | None = None,
) -> Trajectory:
    """Trajectories `[B, H, ...]` of the joint policy in an environment.

    Args:
        env: where the policy acts, the true environment or a learned one.
        learner: whose policy acts.
        learner_state: its state.
        start: the first states.
        memory: the policy's memory at the first states, `[B, ...]`.
        deviation: added to the policy's actions, which are then clipped to [-1, 1].
        moved_by: the actions that move the environment at a step instead of these; the trajectories show these.
    """

    def step(carry: tuple[EnvState, Carry], tokens: tuple[Array, Array]) -> tuple[tuple[EnvState, Carry], Trajectory]:
        (current, memory), (number, deviation) = carry, tokens
        action, memory = learner.act(learner_state, current.obs, memory)
        action = jnp.clip(action + deviation, -1.0, 1.0)
        following = jax.vmap(env.step)(current, action if moved_by is None else moved_by(action, number))
        token = Trajectory(
            state=current.state,
            obs=current.obs,
            action=action,
            reward=following.reward,
            terminal=following.terminal.astype(jnp.float32),
        )
        return (following, memory), token

    first = (jax.vmap(env.set_state)(start), memory)
    _, tokens = jax.lax.scan(step, first, (jnp.arange(deviation.shape[1]), jnp.moveaxis(deviation, 1, 0)))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), tokens)
