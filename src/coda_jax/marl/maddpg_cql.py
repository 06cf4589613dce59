"""MADDPG with conservative Q-learning instead of behaviour cloning (MADDPG+CQL), a baseline of OG-MARL.

CQL (Kumar et al. 2020) lowers values of sampled joint actions and raises those of the data. Samples, weights and the
policy's loss are OG-MARL's (Formanek et al. 2023); its optimiser here is Adam for both networks.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax.marl.actor_critic import ActorCriticConfig, actor_critic
from coda_jax.marl.critics import Teammates, centralised_critics
from coda_jax.marl.input_scale import InputScale
from coda_jax.marl.learner import Learner, RowWeights, weighted_mean
from coda_jax.ranges import Count, NonNegative
from coda_jax.types import Metrics, PRNGKey, TaskSpec, Trajectory


@dataclasses.dataclass(frozen=True)
class MaddpgCqlConfig(ActorCriticConfig):
    """Settings of MADDPG+CQL; the defaults are OG-MARL's.

    Examples:
        >>> cj.MaddpgCqlConfig().cql_weight
        5.0
    """

    cql_weight: NonNegative = 5.0
    """Weight of the conservative term beside the TD error."""
    num_sampled_actions: Count = 10
    """Joint actions in each of the three sets: uniform ones, the policy's at this step, and at the next step."""
    sample_noise: NonNegative = 0.2
    """Standard deviation of the noise on the policy's sampled actions."""
    action_penalty: NonNegative = 1e-3
    """Weight of the mean square action in the policy's loss, which keeps tanh away from saturation."""
    actor_teammates: Teammates = "data"
    """Teammates' actions in the actor's Q term: those in the data (best response under data, Eq. 6), or the current
    policies' (the joint-action actor, not in the paper)."""


def sample_joint_actions(
    mu: Float[Array, "H B A U"], config: MaddpgCqlConfig, key: PRNGKey
) -> tuple[Float[Array, "H B M A U"], Float[Array, "H B M A"]]:
    """The M sampled joint actions of every token, and the log-density of each agent's part of them.

    Sets: uniform on [-1, 1], around mu(o_t), and around mu(o_{t+1}); the last token has no successor and repeats its
    own. Densities are those of the noise before actions are clipped to [-1, 1]. The key is consumed.
    """
    key_uniform, key_noise = jax.random.split(key)
    *tokens, num_agents, action_dim = mu.shape
    shape = (*tokens, config.num_sampled_actions, num_agents, action_dim)
    uniform = jax.random.uniform(key_uniform, shape, minval=-1.0, maxval=1.0)
    epsilon = jax.random.normal(key_noise, (2, *shape))
    centre = jnp.stack([mu, jnp.concatenate([mu[1:], mu[-1:]])])[..., None, :, :]
    near = jnp.clip(centre + config.sample_noise * epsilon, -1.0, 1.0)
    log_uniform = jnp.full(shape[:-1], action_dim * jnp.log(0.5))
    log_normal = jnp.sum(-0.5 * epsilon**2 - jnp.log(config.sample_noise * jnp.sqrt(2.0 * jnp.pi)), axis=-1)
    return jnp.concatenate([uniform, *near], axis=-3), jnp.concatenate([log_uniform, *log_normal], axis=-2)


def conservative_penalty(
    sampled_q: Float[Array, "2 *tokens M"],
    log_density: Float[Array, "*tokens M A"],
    data_q: Float[Array, "2 *tokens"],
) -> Float[Array, "*tokens"]:
    """CQL(H): log of the sum over samples of exp(Q) / density, minus the data's value; the mean over twins and agents.

    As in OG-MARL each agent weighs a joint sample by the density of its own part, and the sum over samples is not
    divided by their number, which shifts the penalty by a constant.
    """
    soft_maximum = jax.nn.logsumexp(sampled_q[..., None] - log_density[None], axis=-2)
    return jnp.mean(soft_maximum, axis=(0, -1)) - jnp.mean(data_q, axis=0)


def maddpg_cql(task: TaskSpec, config: MaddpgCqlConfig, inputs: InputScale) -> Learner:
    """MADDPG+CQL on windows of `task`; its update draws the sampled actions from its key.

    It clones nothing: the cloning weights of rows have no effect.

    Args:
        task: its sizes.
        config: settings.
        inputs: the units in which networks see states and observations; they become part of the learner's state.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> learner = cj.maddpg_cql(env.spec, cj.MaddpgCqlConfig(), cj.raw_inputs(env.spec))
        >>> batch = cj.sample_windows(dataset, jax.random.key(1), 32, horizon=1)
        >>> state, metrics = learner.update(
        ...     learner.init(jax.random.key(2)), batch, cj.uniform_weights(32), jax.random.key(3)
        ... )
        >>> sorted(metrics)
        ['critic_loss', 'critic_penalty', 'data_q', 'policy_loss', 'policy_q']
    """

    def policy_loss(
        value: Float[Array, "H B A"], mu: Float[Array, "H B A U"], action: Array, weights: RowWeights
    ) -> tuple[Float[Array, ""], Metrics]:
        del action
        mean_q = weighted_mean(jnp.mean(value, axis=-1), weights.actor)
        loss = -mean_q + config.action_penalty * weighted_mean(jnp.mean(mu**2, axis=(-2, -1)), weights.actor)
        return loss, {"policy_loss": loss, "policy_q": mean_q}

    def penalty(
        q: Callable[..., Array],
        data_q: Float[Array, "2 H B 1"],
        window: Trajectory,
        mu: Float[Array, "H B A U"],
        key: PRNGKey,
    ) -> Float[Array, "H B"]:
        sampled, log_density = sample_joint_actions(mu, config, key)
        sampled_q = q(window.state[:, :, None], sampled)[..., 0]
        return config.cql_weight * conservative_penalty(sampled_q, log_density, data_q[..., 0])

    critics = centralised_critics(task, config.critic_widths, config.critic_layer_norm, config.actor_teammates)
    return actor_critic(task, config, inputs, critics, policy_loss, penalty)
