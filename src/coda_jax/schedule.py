"""The settings of Algorithm 2, and the sequence of rounds that they ask for."""

import dataclasses
from typing import Literal, NamedTuple

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from coda_jax.augmentation.adaptive_guidance import AdaptiveGuidance
from coda_jax.augmentation.base import Augmentation
from coda_jax.ranges import Count, NonNegativeCount, Ranged, RangeError, Share

Rows = Literal["all", "recorded", "synthetic"]


@dataclasses.dataclass(frozen=True)
class CodaConfig(Ranged):
    """Settings of Algorithm 2; the defaults are the paper's, or our choice where a field says so.

    Examples:
        >>> cj.CodaConfig(epochs_per_round=4, updates_per_epoch=500).updates_per_round
        2000
    """

    horizon: Count = 20
    """H: tokens of a trajectory, real or synthetic."""
    batch_size: Count = 32
    """Trajectories of a mini-batch."""
    mix_ratio: Share = 0.5
    """alpha: share of synthetic trajectories in every mini-batch. Our choice."""
    epochs_per_round: Count = 4
    """N_epochs between two generations of synthetic data."""
    updates_per_epoch: Count = 1000
    """N_policy: learner updates per epoch. Our choice."""
    num_rounds: Count = 75
    """Rounds of generation, updates and evaluation. Our choice: 300,000 updates in all."""
    burn_in: NonNegativeCount = 0
    """Initial rounds on recorded data only, because the first guided set imitates an untrained policy."""
    num_trajectories: Count = 1000
    """B: synthetic trajectories per round and seed; they replace those of the previous round."""
    static_trajectories: Count = 10_000
    """Synthetic trajectories a seed of the unconditional baseline, which samples once for the whole run. Our choice."""
    chunk_size: Count = 16_000
    """Trajectories of a chunk, all seeds of a device together; on a CPU a chunk should fit the cache, about 64. An
    accelerator samples several small chunks at once. Our choice."""
    evaluation_episodes: NonNegativeCount = 10
    """Noise-free episodes per seed and round, with the same starts in every round; 0 for no evaluation."""
    reference_trajectories: NonNegativeCount = 256
    """Trajectories without guidance that a seed keeps for comparison; 0 samples none. Our choice."""
    critic_rows: Rows = "all"
    """Rows of a mini-batch in the critic's loss: `all`, `recorded` or `synthetic`. Where a mini-batch has no row of the
    kind asked for, all its rows count."""
    actor_rows: Rows = "all"
    """Rows in the actor's Q term. `synthetic` makes teammates current whatever the mix ratio; not in the paper."""
    cloning_rows: Rows = "all"
    """Rows in the behaviour cloning term. `recorded` clones no synthetic action; not in the paper."""
    reuse: bool = True
    """Whether mini-batches draw synthetic trajectories at random, with replacement. Otherwise a round uses each once,
    in order, and there should be as many as its mini-batches take. Our choice."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.burn_in < self.num_rounds:
            raise RangeError("burn_in", self.burn_in, f"it must leave some of the {self.num_rounds} rounds")

    def check_share(self) -> None:
        """Refuses a share of synthetic trajectories that rounds to none of a mini-batch, by a `RangeError`."""
        if self.mix_ratio > 0.0 and not self.synthetic_per_batch:
            raise RangeError(
                "mix_ratio",
                self.mix_ratio,
                f"that share of {self.batch_size} trajectories rounds to none; give 0 or a larger one",
            )

    @property
    def synthetic_per_batch(self) -> int:
        """Synthetic trajectories of a mini-batch: the share `mix_ratio`, rounded to whole trajectories."""
        return round(self.mix_ratio * self.batch_size)

    @property
    def updates_per_round(self) -> int:
        """Learner updates between two generations of synthetic data."""
        return self.epochs_per_round * self.updates_per_epoch

    def num_samples(self, augmentation: Augmentation) -> int:
        """Synthetic trajectories a seed: `num_trajectories` where they are renewed, else `static_trajectories`."""
        return self.num_trajectories if augmentation.is_renewed else self.static_trajectories


@chex.dataclass(frozen=True)
class Plan:
    """The contents of a round; traced.

    generate:       whether to renew the synthetic trajectories.
    keep_reference: whether the new ones become the reference set too.
    num_updates:    learner updates.
    evaluate:       whether to roll out the policy; the returns are 0 otherwise.
    guidance:       lambda; 0 samples without guidance. Where lambda is adapted, a factor on the adapted one.
    mix_ratio:      alpha, rounded to whole trajectories of a mini-batch.
    """

    generate: Bool[Array, "*steps"]
    keep_reference: Bool[Array, "*steps"]
    num_updates: Int[Array, "*steps"]
    evaluate: Bool[Array, "*steps"]
    guidance: Float[Array, "*steps"]
    mix_ratio: Float[Array, "*steps"]


class ScheduledRound(NamedTuple):
    """A round of the schedule: `number` is 0 before the first update; `kind` is its main cost."""

    number: int
    kind: Literal["evaluate", "generate", "train"]
    plan: Plan


def make_schedule(config: CodaConfig, augmentation: Augmentation | None) -> tuple[ScheduledRound, ...]:
    """The rounds of a training: evaluation, first generation, then `num_rounds` rounds of renewal and updates.

    Round 0 evaluates the untrained policy, samples the reference set without guidance, and then the first guided set
    (where nothing is guided, the reference set is the head of the first set), each in a round of its own. The first
    `burn_in` rounds of updates are on the recorded data alone.
    """
    guidance = 0.0 if augmentation is None or augmentation.guidance is None else augmentation.guidance
    guidance = 1.0 if isinstance(guidance, AdaptiveGuidance) else guidance
    has_reference = config.reference_trajectories > 0
    is_evaluated = config.evaluation_episodes > 0

    def plan(
        generate: bool = False,
        keep_reference: bool = False,
        num_updates: int = 0,
        evaluate: bool = False,
        guidance: float = guidance,
        mix_ratio: Share = 0.0,
    ) -> Plan:
        return Plan(
            generate=jnp.bool_(generate),
            keep_reference=jnp.bool_(keep_reference),
            num_updates=jnp.int32(num_updates),
            evaluate=jnp.bool_(evaluate),
            guidance=jnp.float32(guidance),
            mix_ratio=jnp.float32(mix_ratio),
        )

    rounds: list[ScheduledRound] = []
    if is_evaluated:
        rounds.append(ScheduledRound(0, "evaluate", plan(evaluate=True)))
    if augmentation is not None:
        if has_reference:
            rounds.append(ScheduledRound(0, "generate", plan(generate=True, keep_reference=True, guidance=0.0)))
        if augmentation.guidance is not None or not has_reference:
            rounds.append(ScheduledRound(0, "generate", plan(generate=True)))
    for number in range(1, config.num_rounds + 1):
        is_mixed = augmentation is not None and number > config.burn_in
        is_renewed = augmentation is not None and augmentation.is_renewed and is_mixed and number > 1
        train = plan(
            generate=is_renewed,
            num_updates=config.updates_per_round,
            evaluate=is_evaluated,
            mix_ratio=config.mix_ratio if is_mixed else 0.0,
        )
        rounds.append(ScheduledRound(number, "train", train))
    return tuple(rounds)
