"""Independent DDPG with behaviour cloning (IDDPG+BC), a baseline of OG-MARL (Formanek et al. 2023).

It differs from MADDPG+BC in its critics, which see the global state and one agent's own action: to an agent the others
are part of the environment, with the behaviour in the data.
"""

import dataclasses
import functools

from coda_jax.marl.actor_critic import ActorCriticConfig, actor_critic
from coda_jax.marl.cloning import cloning_policy_loss
from coda_jax.marl.critics import independent_critics
from coda_jax.marl.input_scale import InputScale
from coda_jax.marl.learner import Learner
from coda_jax.ranges import NonNegative
from coda_jax.types import TaskSpec


@dataclasses.dataclass(frozen=True)
class IddpgBcConfig(ActorCriticConfig):
    """Settings of IDDPG+BC; the defaults are OG-MARL's.

    Examples:
        >>> cj.IddpgBcConfig(alpha_bc=10.0).discount
        0.99
    """

    alpha_bc: NonNegative = 2.5
    """Weight of the normalised Q term beside the cloning term, as in TD3+BC; 0 is pure behaviour cloning."""


def iddpg_bc(task: TaskSpec, config: IddpgBcConfig, inputs: InputScale) -> Learner:
    """IDDPG+BC on windows of `task`; its update draws nothing at random, so the key given to it does not matter.

    Args:
        task: its sizes.
        config: settings.
        inputs: the units in which networks see states and observations; they become part of the learner's state.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> learner = cj.iddpg_bc(env.spec, cj.IddpgBcConfig(), cj.raw_inputs(env.spec))
        >>> batch = cj.sample_windows(dataset, jax.random.key(1), 32, horizon=1)
        >>> state, metrics = learner.update(
        ...     learner.init(jax.random.key(2)), batch, cj.uniform_weights(32), jax.random.key(3)
        ... )
        >>> sorted(metrics)
        ['bc_loss', 'critic_loss', 'data_q', 'policy_loss', 'policy_q']
    """
    critics = independent_critics(task, config.critic_widths, config.critic_layer_norm)
    loss = functools.partial(cloning_policy_loss, alpha_bc=config.alpha_bc)
    return actor_critic(task, config, inputs, critics, loss)
