"""CODA (Algorithm 2): an offline learner on a mixture of recorded and policy-guided synthetic trajectories.

    for round in range(num_rounds):
        synthetic = sample(guide = joint policy)                 # Alg. 2, l. 7
        for epoch, step in ...:                                  # l. 10
            update(mix(synthetic, dataset))                      # l. 9, 11-12
        evaluate(joint policy)

One round is one traced function of a single seed; `across_seeds` puts the seed axis in front of all of a run's state.
What a round does (whether it generates, how many updates it makes, whether it evaluates, the guidance scale and the
mix) is a traced `Plan`, so that CODA, its two baselines, the first generation and the first evaluation all run one
compiled program.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from coda_jax import transforms
from coda_jax.data.dataset import Dataset, sample_windows
from coda_jax.diffusion.generator import Generator
from coda_jax.diffusion.guidance import Guide, gaussian_log_prob, score_guide
from coda_jax.diffusion.samplers import SamplerConfig, heun_sample, sample_in_chunks
from coda_jax.envs.base import Environment, EnvState
from coda_jax.evaluation import action_log_likelihood, policy_returns
from coda_jax.marl.learner import Carry, Learner, LearnerState, uniform_weights, unroll
from coda_jax.types import Metrics, Params, PRNGKey, TaskSpec, Trajectory

NUM_UNGUIDED = 256
"""Most trajectories sampled without guidance that a seed keeps for comparison."""

EVALUATION_KEY = 0
"""Seed of the starts of the evaluation episodes: the same for every seed in every round."""


@dataclasses.dataclass(frozen=True)
class CodaConfig:
    """Settings of Algorithm 2."""

    horizon: int = 20
    """H: tokens of a trajectory, real or synthetic."""
    batch_size: int = 32
    """Trajectories of a mini-batch."""
    mix_ratio: float = 0.1
    """alpha: share of synthetic trajectories in every mini-batch."""
    epochs_per_round: int = 4
    """N_epochs between two generations of synthetic data."""
    updates_per_epoch: int = 500
    """N_policy: learner updates an epoch."""
    num_rounds: int = 5
    """Rounds of generation, updates and evaluation."""
    burn_in: int = 0
    """Rounds on the recorded data alone that come first: the first guided set would imitate an untrained policy."""
    num_trajectories: int = 1000
    """B: synthetic trajectories a round and seed, in place of the last round's."""
    static_trajectories: int = 5_000
    """Synthetic trajectories a seed of the unconditional baseline, which samples once for the whole run."""
    chunk_size: int = 64
    """Trajectories that a device samples at once, all its seeds together; on a CPU they should fit the cache."""
    evaluation_episodes: int = 10
    """Noise-free episodes a seed and round; their starts are the same in every round."""


@chex.dataclass(frozen=True)
class Prior:
    """What all seeds share and training does not change.

    dataset:   training windows of H steps.
    transform: from the data's units to the denoiser's and back.
    denoiser:  the fitted weights.
    """

    dataset: Dataset
    transform: transforms.CdfTransform
    denoiser: Params


@chex.dataclass(frozen=True)
class Plan:
    """What a round does; traced.

    generate:    whether to renew the synthetic trajectories.
    num_updates: learner updates.
    evaluate:    whether to roll out the policy; the returns are 0 otherwise.
    guidance:    lambda; 0 samples the unconditional model.
    mix_ratio:   alpha, rounded to whole trajectories of a mini-batch.
    """

    generate: Bool[Array, ""]
    num_updates: Int[Array, ""]
    evaluate: Bool[Array, ""]
    guidance: Float[Array, ""]
    mix_ratio: Float[Array, ""]


@chex.dataclass(frozen=True)
class CodaState:
    """One seed's training.

    learner:   the learner's state.
    synthetic: `[M, H, ...]` the synthetic trajectories in use; zeros before the first generation.
    unguided:  `[min(M, NUM_UNGUIDED), H, ...]` trajectories sampled without guidance (rolled out by the first policy,
               if they are simulated), which a round only compares with the others. Zeros until the caller puts them
               there.
    key:       randomness of the rounds to come.
    """

    learner: LearnerState
    synthetic: Trajectory
    unguided: Trajectory
    key: PRNGKey


@chex.dataclass(frozen=True)
class Report:
    """What one round brought.

    returns:  `[*batch, evaluation_episodes]` undiscounted returns of the policy after the round.
    metrics:  means over the round's updates; `synthetic_log_likelihood` and `unguided_log_likelihood`, the mean
              action log-likelihood of either trajectories under the policy that starts the round. Means are 0
              where there were no updates, likelihoods where the mix ratio is 0.
    finite:   for each phase (`generate`, `update`, `evaluate`) whether all its numbers are finite.
    """

    returns: Float[Array, "*batch E"]
    metrics: Metrics
    finite: dict[str, Bool[Array, "*batch"]]


class Coda(NamedTuple):
    """Algorithm 2 as two pure functions."""

    init: Callable[[PRNGKey], CodaState]
    round: Callable[[CodaState, Prior, Plan], tuple[CodaState, Report]]


def policy_guide(learner: Learner, state: LearnerState, transform: transforms.CdfTransform, spec: TaskSpec) -> Guide:
    """The guide of Eq. 14 for a joint policy: toward its actions, along each denoised trajectory."""
    obs_channels, action_channels = transforms.obs_channels(spec), transforms.action_channels(spec)
    decoded = slice(obs_channels.start, action_channels.stop)  # observations and actions stand side by side
    decoding = transforms.select(transform, decoded)
    num_obs = obs_channels.stop - obs_channels.start

    def decode(denoised: Float[Array, "B H C"]) -> tuple[Float[Array, "B H A U"], Float[Array, "B H A O"]]:
        x = transforms.inverse(decoding, denoised[..., decoded])
        obs = x[..., :num_obs].reshape(*x.shape[:-1], spec.num_agents, spec.obs_dim)
        return x[..., num_obs:].reshape(*x.shape[:-1], spec.num_agents, spec.action_dim), obs

    def log_prob(action: Float[Array, "B H A U"], obs: Float[Array, "B H A O"]) -> Float[Array, "B"]:
        return gaussian_log_prob(action, unroll(learner, state, obs))

    return score_guide(log_prob, decode, action_channels)


def sample_trajectories(
    generator: Generator,
    prior: Prior,
    spec: TaskSpec,
    sampler: SamplerConfig,
    key: PRNGKey,
    shape: tuple[int, int],
    chunk_size: int,
    guide: Guide | None = None,
    guidance: Float[Array, ""] | float = 0.0,
) -> Trajectory:
    """Samples trajectories in the data's units from the fitted prior (Algorithm 1).

    Args:
        generator: the diffusion model whose weights are the prior's.
        prior: its weights and its transform.
        spec: sizes of the task.
        sampler: settings of Algorithm 1.
        key: consumed.
        shape: how many trajectories, of how many steps H each.
        chunk_size: trajectories sampled at once.
        guide: whither to steer; none samples the unconditional model.
        guidance: lambda.
    """
    num_trajectories, horizon = shape

    def denoise(tau: Array, sigma: Array) -> Array:
        return generator.denoise(prior.denoiser, tau, sigma)

    def sample(key: PRNGKey, num: int) -> Array:
        return heun_sample(denoise, key, (num, horizon, transforms.num_channels(spec)), sampler, guide, guidance)

    z = sample_in_chunks(sample, key, num_trajectories, chunk_size)
    return transforms.unpack(transforms.inverse(prior.transform, z), spec)


def simulate_trajectories(
    env: Environment,
    learner: Learner,
    state: LearnerState,
    dataset: Dataset,
    key: PRNGKey,
    shape: tuple[int, int],
    chunk_size: int,
) -> Trajectory:
    """Rolls the joint policy out from recorded states, its memory empty: what a perfect prior, guided, would sample.

    No offline method can have these. Beside CODA they tell what a better prior could bring. An end of the episode does
    not stop a roll-out; as everywhere, nothing bootstraps from behind it.

    Args:
        env: the environment of the data.
        learner: whose policy acts, without noise.
        state: its state.
        dataset: where the first states come from.
        key: consumed.
        shape: how many trajectories, of how many steps H each.
        chunk_size: trajectories rolled out at once.
    """
    num_trajectories, horizon = shape

    def simulate(key: PRNGKey, num: int) -> Array:
        def step(carry: tuple[EnvState, Carry], _: None) -> tuple[tuple[EnvState, Carry], Trajectory]:
            now, memory = carry
            action, memory = learner.act(state, now.obs, memory)
            led = jax.vmap(env.step)(now, action)
            terminal = led.terminal.astype(jnp.float32)
            made = Trajectory(state=now.state, obs=now.obs, action=action, reward=led.reward, terminal=terminal)
            return (led, memory), made

        start = jax.vmap(env.set_state)(sample_windows(dataset, key, num, 1).state[:, 0])
        _, made = jax.lax.scan(step, (start, learner.initial_carry((num,))), length=horizon)
        return jnp.moveaxis(transforms.pack(made), 0, 1)

    return transforms.unpack(sample_in_chunks(simulate, key, num_trajectories, chunk_size), env.spec)


def mix(real: Trajectory, synthetic: Trajectory, mix_ratio: Float[Array, ""]) -> Trajectory:
    """A mini-batch whose first rows, a share of `mix_ratio`, are synthetic and the others real (Alg. 2, l. 9)."""
    batch_size = real.reward.shape[0]
    is_synthetic = jnp.arange(batch_size) < jnp.round(mix_ratio * batch_size)

    def select(s: Array, r: Array) -> Array:
        return jnp.where(is_synthetic.reshape(-1, *[1] * (s.ndim - 1)), s, r)

    return jax.tree.map(select, synthetic, real)


def all_finite(tree: object) -> Bool[Array, ""]:
    """Whether every floating-point number of a pytree is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


def coda(
    env: Environment,
    learner: Learner,
    generator: Generator,
    config: CodaConfig,
    sampler: SamplerConfig,
    seeds_per_device: int = 1,
    simulate: bool = False,
) -> Coda:
    """Layers CODA on an offline learner.

    Args:
        env: where policies are evaluated; its `spec` is the data's.
        learner: any learner of the protocol.
        generator: the diffusion model whose weights come with the `Prior`.
        config: settings of Algorithm 2.
        sampler: settings of Algorithm 1.
        seeds_per_device: how many seeds will be vmapped on a device; they share `config.chunk_size`.
        simulate: synthetic trajectories are rolled out (`simulate_trajectories`) instead of sampled.
    """
    spec = env.spec
    num_channels = transforms.num_channels(spec)
    chunk_size = max(1, config.chunk_size // seeds_per_device)

    def init(key: PRNGKey) -> CodaState:
        key_learner, key_rounds = jax.random.split(key)

        def blank(num: int) -> Trajectory:
            return transforms.unpack(jnp.zeros((num, config.horizon, num_channels)), spec)

        return CodaState(
            learner=learner.init(key_learner),
            synthetic=blank(config.num_trajectories),
            unguided=blank(min(config.num_trajectories, NUM_UNGUIDED)),
            key=key_rounds,
        )

    def generate(state: LearnerState, prior: Prior, guidance: Array, key: PRNGKey) -> Trajectory:
        shape = (config.num_trajectories, config.horizon)
        if simulate:
            return simulate_trajectories(env, learner, state, prior.dataset, key, shape, chunk_size)
        guide = policy_guide(learner, state, prior.transform, spec)
        return sample_trajectories(generator, prior, spec, sampler, key, shape, chunk_size, guide, guidance)

    def update(
        state: LearnerState, synthetic: Trajectory, prior: Prior, plan: Plan, key: PRNGKey
    ) -> tuple[LearnerState, Metrics]:
        key_real, key_synthetic, key_update = jax.random.split(key, 3)
        real = sample_windows(prior.dataset, key_real, config.batch_size, config.horizon)
        rows = jax.random.randint(key_synthetic, (config.batch_size,), 0, config.num_trajectories)
        batch = mix(real, jax.tree.map(lambda leaf: leaf[rows], synthetic), plan.mix_ratio)
        return learner.update(state, batch, uniform_weights(config.batch_size), key_update)

    def train(
        state: LearnerState, synthetic: Trajectory, prior: Prior, plan: Plan, key: PRNGKey
    ) -> tuple[LearnerState, Metrics]:
        shapes = jax.eval_shape(update, state, synthetic, prior, plan, key)[1]
        totals = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def body(step: Array, carry: tuple[LearnerState, Metrics]) -> tuple[LearnerState, Metrics]:
            state, totals = carry
            state, metrics = update(state, synthetic, prior, plan, jax.random.fold_in(key, step))
            return state, jax.tree.map(jnp.add, totals, metrics)

        state, totals = jax.lax.fori_loop(0, plan.num_updates, body, (state, totals))
        return state, jax.tree.map(lambda total: total / jnp.maximum(plan.num_updates, 1), totals)

    def round_(state: CodaState, prior: Prior, plan: Plan) -> tuple[CodaState, Report]:
        key, key_generate, key_train = jax.random.split(state.key, 3)
        synthetic = jax.lax.cond(
            plan.generate,
            lambda: generate(state.learner, prior, plan.guidance, key_generate),
            lambda: state.synthetic,
        )
        log_likelihoods = {
            "synthetic_log_likelihood": action_log_likelihood(learner, state.learner, synthetic),
            "unguided_log_likelihood": action_log_likelihood(learner, state.learner, state.unguided),
        }
        learned, metrics = train(state.learner, synthetic, prior, plan, key_train)
        returns = jax.lax.cond(
            plan.evaluate,
            lambda: policy_returns(env, learner, learned, jax.random.key(EVALUATION_KEY), config.evaluation_episodes),
            lambda: jnp.zeros(config.evaluation_episodes),
        )
        for name, values in log_likelihoods.items():
            metrics[name] = jnp.where(plan.mix_ratio > 0, jnp.mean(values), 0.0)
        finite = {
            "generate": all_finite(synthetic),
            "update": all_finite((learned, metrics)),
            "evaluate": all_finite(returns),
        }
        report = Report(returns=returns, metrics=metrics, finite=finite)
        return CodaState(learner=learned, synthetic=synthetic, unguided=state.unguided, key=key), report

    return Coda(init, round_)


def across_seeds(single: Coda, mesh: Mesh) -> Coda:
    """Puts a seed axis in front of keys, state and report: vmapped in a device, sharded over the mesh's `seed` axis.

    The prior and the plan are shared by all seeds and replicated on all devices. The number of seeds must be a multiple
    of the number of devices.
    """
    seeds, shared = PartitionSpec("seed"), PartitionSpec()
    init = jax.shard_map(jax.vmap(single.init), mesh=mesh, in_specs=seeds, out_specs=seeds, check_vma=False)
    round_ = jax.shard_map(
        jax.vmap(single.round, in_axes=(0, None, None)),
        mesh=mesh,
        in_specs=(seeds, shared, shared),
        out_specs=seeds,
        check_vma=False,
    )
    return Coda(init, round_)
