"""MADDPG+BC with recurrent policies: the offline base learner of the MaMuJoCo experiments (Sec. 3, App. F.2, Table 5).

Where the paper is silent we follow the OG-MARL learner it builds on (Formanek et al. 2023): critics with two hidden
layers of 128, and what `actor_critic` says.
"""

import dataclasses
import functools

from coda_jax.marl.actor_critic import ActorCriticConfig, actor_critic
from coda_jax.marl.cloning import cloning_policy_loss
from coda_jax.marl.critics import Teammates, centralised_critics
from coda_jax.marl.input_scale import InputScale
from coda_jax.marl.learner import Learner
from coda_jax.ranges import NonNegative
from coda_jax.types import TaskSpec


@dataclasses.dataclass(frozen=True)
class MaddpgBcConfig(ActorCriticConfig):
    """Settings of MADDPG+BC; the defaults are those of Table 5.

    Examples:
        >>> cj.MaddpgBcConfig(alpha_bc=10.0).discount
        0.99
    """

    alpha_bc: NonNegative = 2.5
    """Weight of the normalised Q term beside the cloning term, as in TD3+BC; 0 is pure behaviour cloning."""
    actor_teammates: Teammates = "data"
    """Teammates' actions in the actor's Q term: those in the data (best response under data, Eq. 6), or the current
    policies' (the joint-action actor, not in the paper)."""


def maddpg_bc(task: TaskSpec, config: MaddpgBcConfig, inputs: InputScale) -> Learner:
    """MADDPG+BC on windows of `task`; its update draws nothing at random, so the key given to it does not matter.

    Args:
        task: its sizes.
        config: settings.
        inputs: the units in which networks see states and observations; they become part of the learner's state.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> learner = cj.maddpg_bc(env.spec, cj.MaddpgBcConfig(), cj.raw_inputs(env.spec))
        >>> batch = cj.sample_windows(dataset, jax.random.key(1), 32, horizon=1)
        >>> state, metrics = learner.update(
        ...     learner.init(jax.random.key(2)), batch, cj.uniform_weights(32), jax.random.key(3)
        ... )
        >>> sorted(metrics)
        ['bc_loss', 'critic_loss', 'data_q', 'policy_loss', 'policy_q']
    """
    critics = centralised_critics(task, config.critic_widths, config.critic_layer_norm, config.actor_teammates)
    loss = functools.partial(cloning_policy_loss, alpha_bc=config.alpha_bc)
    return actor_critic(task, config, inputs, critics, loss)
