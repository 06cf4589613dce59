"""CODA (Algorithm 2): an offline learner on a mixture of recorded and synthetic trajectories.

    for round in range(num_rounds):
        synthetic = augmentation.sample(joint policy)            # Alg. 2, l. 7
        for epoch, step in ...:                                  # l. 10
            update(mix(synthetic, dataset))                      # l. 9, 11-12
        evaluate(joint policy)

`make_trainer` layers it on any learner with any augmentation. One round is one traced function of a single seed;
`across_seeds` puts the seed axis in front of all of a run's state. A round's contents (whether it generates, how many
updates it makes, whether it evaluates, the guidance scale and the mix) are a traced `Plan`, so that CODA, its
baselines, the first generation and the first evaluation all run one compiled program. `Trainer.schedule` is the
sequence of plans of a whole training; `Trainer.run` is that training as one pure function.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from coda_jax import transforms
from coda_jax.augmentation.base import Augmentation, sample_in_chunks
from coda_jax.backend import sizes
from coda_jax.data.dataset import Dataset, sample_windows
from coda_jax.envs.base import Environment
from coda_jax.evaluation import action_log_likelihood, policy_returns
from coda_jax.marl.learner import Learner, LearnerState, RowWeights
from coda_jax.schedule import CodaConfig, Plan, Rows, ScheduledRound, make_schedule
from coda_jax.types import Metrics, PRNGKey, Trajectory

_EVALUATION = 0x6576616C
"""What is folded into a root key to make that of the evaluation: far above any index that keys are split by."""


@chex.dataclass(frozen=True)
class TrainingState:
    """One seed's training.

    learner:   the learner's state.
    synthetic: `[M, H, ...]` the synthetic trajectories in use; zeros before the first generation.
    reference: `[R, H, ...]` synthetic trajectories without guidance, sampled before the first update, for comparison.
    key:       randomness of the rounds to come.
    """

    learner: LearnerState
    synthetic: Trajectory
    reference: Trajectory
    key: PRNGKey


@chex.dataclass(frozen=True)
class Report:
    """The results of one round.

    returns:  `[*batch, evaluation_episodes]` undiscounted returns of the policy after the round.
    metrics:  means over the round's updates; `synthetic_log_likelihood` and `unguided_log_likelihood`, the mean
              action log-likelihood of the synthetic and the reference trajectories under the policy that starts the
              round. Means are 0 where there were no updates, likelihoods where the mix ratio is 0.
    finite:   for each phase (`generate`, `update`, `evaluate`) whether all its numbers are finite.
    """

    returns: Float[Array, "*batch E"]
    metrics: Metrics
    finite: dict[str, Bool[Array, "*batch"]]


class Trainer(NamedTuple):
    """Algorithm 2 as pure functions.

    init:     `key -> state`. The key is consumed.
    round:    `(state, dataset, prior, plan) -> (state, report)`, one round.
    run:      `(state, dataset, prior, callback) -> (state, results)`, all rounds of the schedule as one `lax.scan`.
              `callback(state, report)` gives a pytree after each round, and the results stack these along a leading
              axis; without it they are the reports.
    schedule: the rounds of a whole training, for a caller that iterates `round`, saves and prints.
    """

    init: Callable[[PRNGKey], TrainingState]
    round: Callable[[TrainingState, Dataset, Any, Plan], tuple[TrainingState, Report]]
    run: Callable[..., tuple[TrainingState, Any]]
    schedule: tuple[ScheduledRound, ...]


def make_trainer(
    env: Environment,
    learner: Learner,
    augmentation: Augmentation | None,
    config: CodaConfig,
    seeds_per_device: int = 1,
) -> Trainer:
    """Layers CODA on an offline learner.

    Args:
        env: where policies are evaluated; its `spec` is the data's.
        learner: any learner of the protocol.
        augmentation: the source of synthetic trajectories; None trains on the recorded data alone.
        config: settings of Algorithm 2.
        seeds_per_device: how many seeds will be vmapped on a device; they share `config.chunk_size`.

    Returns:
        The training of one seed; see `across_seeds`.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> learner = cj.maddpg_bc(env.spec, cj.MaddpgBcConfig(), cj.raw_inputs(env.spec))
        >>> config = cj.CodaConfig(horizon=1, num_rounds=2, epochs_per_round=1, updates_per_epoch=5)
        >>> trainer = cj.make_trainer(env, learner, cj.oracle(env, learner, horizon=1), config)
        >>> state, reports = jax.jit(trainer.run)(trainer.init(jax.random.key(1)), dataset, ())
        >>> [(scheduled.number, scheduled.kind) for scheduled in trainer.schedule]
        [(0, 'evaluate'), (0, 'generate'), (1, 'train'), (2, 'train')]
        >>> reports.returns.shape  # rounds, evaluation episodes
        (4, 10)

    Raises:
        RangeError: with an augmentation, a mix ratio that rounds to no trajectory of a mini-batch.
    """
    if augmentation is not None:
        config.check_share()
    chunk_size = max(1, config.chunk_size // seeds_per_device)
    chunks_at_once = max(1, sizes().trajectories // config.chunk_size)
    num_synthetic = 1 if augmentation is None else config.num_samples(augmentation)
    num_reference = min(config.reference_trajectories, num_synthetic)

    def init(key: PRNGKey) -> TrainingState:
        key_learner, key_rounds = jax.random.split(key)

        def blank(num: int) -> Trajectory:
            return transforms.unpack(jnp.zeros((num, config.horizon, transforms.num_channels(env.spec))), env.spec)

        return TrainingState(
            learner=learner.init(key_learner),
            synthetic=blank(num_synthetic),
            reference=blank(num_reference),
            key=key_rounds,
        )

    def generate(
        sample: Callable[..., Trajectory], state: TrainingState, dataset: Dataset, prior: Any, plan: Plan, key: PRNGKey
    ) -> Trajectory:
        def sample_chunk(key: PRNGKey, num: int) -> Trajectory:
            return sample(state.learner, dataset, prior, plan.guidance, key, num)

        return jax.lax.cond(
            plan.generate,
            lambda: sample_in_chunks(sample_chunk, key, num_synthetic, chunk_size, chunks_at_once),
            lambda: state.synthetic,
        )

    def update(
        state: LearnerState, step: Array, synthetic: Trajectory, dataset: Dataset, plan: Plan, key: PRNGKey
    ) -> tuple[LearnerState, Metrics]:
        key_real, key_synthetic, key_update = jax.random.split(jax.random.fold_in(key, step), 3)
        real = sample_windows(dataset, key_real, config.batch_size, config.horizon)
        if config.reuse:
            rows = jax.random.randint(key_synthetic, (config.batch_size,), 0, num_synthetic)
        else:
            rows = (step * config.batch_size + jnp.arange(config.batch_size)) % num_synthetic
        batch = mix(real, jax.tree.map(lambda leaf: leaf[rows], synthetic), plan.mix_ratio)
        return learner.update(state, batch, row_weights(config, plan.mix_ratio), key_update)

    def train(
        state: LearnerState, synthetic: Trajectory, dataset: Dataset, plan: Plan, key: PRNGKey
    ) -> tuple[LearnerState, Metrics]:
        shapes = jax.eval_shape(update, state, jnp.int32(0), synthetic, dataset, plan, key)[1]
        totals = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def body(step: Array, carry: tuple[LearnerState, Metrics]) -> tuple[LearnerState, Metrics]:
            state, totals = carry
            state, metrics = update(state, step, synthetic, dataset, plan, key)
            return state, jax.tree.map(jnp.add, totals, metrics)

        state, totals = jax.lax.fori_loop(0, plan.num_updates, body, (state, totals))
        return state, jax.tree.map(lambda total: total / jnp.maximum(plan.num_updates, 1), totals)

    def evaluate(state: LearnerState, plan: Plan) -> Float[Array, "E"]:
        if config.evaluation_episodes == 0:
            return jnp.zeros(0)
        return jax.lax.cond(
            plan.evaluate,
            lambda: policy_returns(env, learner, state, evaluation_key(), config.evaluation_episodes),
            lambda: jnp.zeros(config.evaluation_episodes),
        )

    def round_(state: TrainingState, dataset: Dataset, prior: Any, plan: Plan) -> tuple[TrainingState, Report]:
        key, key_generate, key_train = jax.random.split(state.key, 3)
        synthetic, reference = state.synthetic, state.reference
        if augmentation is not None:
            synthetic = generate(augmentation.sample, state, dataset, prior, plan, key_generate)
            reference = jax.tree.map(
                lambda new, old: jnp.where(plan.keep_reference, new[:num_reference], old), synthetic, reference
            )
        log_likelihoods = {"synthetic_log_likelihood": action_log_likelihood(learner, state.learner, synthetic)}
        if num_reference:
            log_likelihoods["unguided_log_likelihood"] = action_log_likelihood(learner, state.learner, reference)
        learned, metrics = train(state.learner, synthetic, dataset, plan, key_train)
        returns = evaluate(learned, plan)
        for name, values in log_likelihoods.items():
            metrics[name] = jnp.where(plan.mix_ratio > 0, jnp.mean(values), 0.0)
        finite = {
            "generate": all_finite(synthetic),
            "update": all_finite((learned, metrics)),
            "evaluate": all_finite(returns),
        }
        report = Report(returns=returns, metrics=metrics, finite=finite)
        return TrainingState(learner=learned, synthetic=synthetic, reference=reference, key=key), report

    schedule = make_schedule(config, augmentation)
    return Trainer(init, round_, functools.partial(_run, round_, schedule), schedule)


def _run(
    round_: Callable[[TrainingState, Dataset, Any, Plan], tuple[TrainingState, Report]],
    schedule: tuple[ScheduledRound, ...],
    state: TrainingState,
    dataset: Dataset,
    prior: Any,
    callback: Callable[[TrainingState, Report], Any] = lambda state, report: report,
) -> tuple[TrainingState, Any]:
    """`Trainer.run`."""

    def body(state: TrainingState, plan: Plan) -> tuple[TrainingState, Any]:
        state, report = round_(state, dataset, prior, plan)
        return state, callback(state, report)

    plans = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[each.plan for each in schedule])
    return jax.lax.scan(body, state, plans)


def evaluation_key() -> PRNGKey:
    """The key of the starts of the evaluation episodes: the same for every seed in every round, and no seed's own."""
    return jax.random.fold_in(jax.random.key(0), _EVALUATION)


def mix(real: Trajectory, synthetic: Trajectory, mix_ratio: Float[Array, ""]) -> Trajectory:
    """A mini-batch whose first rows, a share of `mix_ratio`, are synthetic and the others real (Alg. 2, l. 9)."""
    batch_size = real.reward.shape[0]
    is_synthetic = synthetic_rows(batch_size, mix_ratio)

    def select(s: Array, r: Array) -> Array:
        return jnp.where(is_synthetic.reshape(-1, *[1] * (s.ndim - 1)), s, r)

    return jax.tree.map(select, synthetic, real)


def synthetic_rows(batch_size: int, mix_ratio: Float[Array, ""]) -> Bool[Array, "B"]:
    """Which rows of a mini-batch are synthetic: the first ones, a share of `mix_ratio` rounded to whole rows."""
    return jnp.arange(batch_size) < jnp.round(mix_ratio * batch_size)


def row_weights(config: CodaConfig, mix_ratio: Float[Array, ""]) -> RowWeights:
    """The weights, 0 or 1, that let each term see the rows that the settings name."""
    is_synthetic = synthetic_rows(config.batch_size, mix_ratio)

    def weights(rows: Rows) -> Float[Array, "B"]:
        if rows == "all":
            return jnp.ones(config.batch_size)
        chosen = is_synthetic if rows == "synthetic" else ~is_synthetic
        return jnp.where(jnp.any(chosen), chosen, True).astype(jnp.float32)

    return RowWeights(
        critic=weights(config.critic_rows), actor=weights(config.actor_rows), cloning=weights(config.cloning_rows)
    )


def all_finite(tree: object) -> Bool[Array, ""]:
    """Whether every floating-point number of a pytree is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))


def across_seeds(single: Trainer, mesh: Mesh) -> Trainer:
    """Puts a seed axis in front of keys, state and report: vmapped in a device, sharded over the mesh's `seed` axis.

    Dataset, prior and plan are shared by all seeds and replicated on all devices. The number of seeds must be a
    multiple of the number of devices.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> learner = cj.maddpg_bc(env.spec, cj.MaddpgBcConfig(), cj.raw_inputs(env.spec))
        >>> config = cj.CodaConfig(horizon=1, num_rounds=2, epochs_per_round=1, updates_per_epoch=5)
        >>> automatic = (jax.sharding.AxisType.Auto,)
        >>> mesh = jax.make_mesh((1,), ("seed",), axis_types=automatic, devices=jax.devices()[:1])
        >>> trainer = cj.across_seeds(cj.make_trainer(env, learner, None, config, seeds_per_device=3), mesh)
        >>> state = jax.jit(trainer.init)(jax.random.split(jax.random.key(1), 3))
        >>> state, reports = jax.jit(trainer.run)(state, dataset, ())
        >>> reports.returns.shape  # rounds, seeds, evaluation episodes
        (3, 3, 10)
    """
    seeds, shared = PartitionSpec("seed"), PartitionSpec()
    init = jax.shard_map(jax.vmap(single.init), mesh=mesh, in_specs=seeds, out_specs=seeds, check_vma=False)
    round_ = jax.shard_map(
        jax.vmap(single.round, in_axes=(0, None, None, None)),
        mesh=mesh,
        in_specs=(seeds, shared, shared, shared),
        out_specs=seeds,
        check_vma=False,
    )
    return Trainer(init, round_, functools.partial(_run, round_, single.schedule), single.schedule)
