"""The oracle: roll-outs of the joint policy in the environment itself, from recorded states.

No offline method can have these. Beside CODA they show the value of on-policy data without any error of a model.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.augmentation.base import Augmentation
from coda_jax.data.dataset import Dataset, sample_windows
from coda_jax.envs.base import Environment, EnvState
from coda_jax.marl.learner import Carry, Learner, LearnerState
from coda_jax.types import PRNGKey, Trajectory


def oracle(env: Environment, learner: Learner, horizon: int) -> Augmentation:
    """Roll-outs of `horizon` steps without action noise, the policy's memory empty at first; renewed every round.

    The end of an episode does not stop a roll-out; as everywhere, nothing bootstraps from behind it. The prior is not
    used.

    Args:
        env: the environment of the data.
        learner: whose policy acts.
        horizon: H.

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

        def step(carry: tuple[EnvState, Carry], _: None) -> tuple[tuple[EnvState, Carry], Trajectory]:
            current, memory = carry
            action, memory = learner.act(state, current.obs, memory)
            following = jax.vmap(env.step)(current, action)
            token = Trajectory(
                state=current.state,
                obs=current.obs,
                action=action,
                reward=following.reward,
                terminal=following.terminal.astype(jnp.float32),
            )
            return (following, memory), token

        start = jax.vmap(env.set_state)(sample_windows(dataset, key, num, 1).state[:, 0])
        _, tokens = jax.lax.scan(step, (start, learner.initial_carry((num,))), length=horizon)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), tokens)

    return Augmentation(sample, is_renewed=True)
