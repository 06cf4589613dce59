"""The methods on a polynomial game, each Algorithm 2 with its own augmentation (Sec. 6.1).

A game is a task of horizon 1, and no mini-batch is used twice. Static methods train on a fixed dataset: the recorded
joint actions, or samples of an augmentation. The CODA methods sample new mini-batches as the policy changes, by
classifier-free guidance (route B of Sec. 4.2) or by the policy's score (route A, Algorithm 1) on the same denoiser
without condition.

All functions are for one seed and one draw of the dataset; callers vmap over seeds, which share a `GamePrior`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import chex
import jax
import jax.numpy as jnp
from annotated_types import Interval
from jaxtyping import Array, Float

from coda_jax import transforms
from coda_jax.augmentation.base import Augmentation, sample_in_chunks
from coda_jax.augmentation.classifier_free import classifier_free
from coda_jax.augmentation.guided import guided
from coda_jax.augmentation.oracle import oracle
from coda_jax.augmentation.return_conditioned import return_conditioned
from coda_jax.augmentation.unconditional import unconditional
from coda_jax.coda import Report, Trainer, TrainingState, make_trainer
from coda_jax.data.dataset import Dataset, one_step_dataset
from coda_jax.diffusion.generator import Generator
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.envs.polynomial import PolynomialGame, environment, reward
from coda_jax.marl.learner import Learner, LearnerState
from coda_jax.marl.stateless_maddpg import CriticConfig, StatelessMaddpgConfig, critic_value, stateless_maddpg
from coda_jax.prior import Prior, TrajectoryModel
from coda_jax.ranges import Count, NonNegative, NonNegativeCount, PositiveShare, Ranged
from coda_jax.schedule import CodaConfig
from coda_jax.types import Params, PRNGKey, Trajectory

STATIC_METHODS = ("none", "unconditional", "q-conditioned")
"""Trained on a fixed dataset: the recorded data; samples of the unconditional model; samples conditioned on
high returns."""

CODA_METHODS = ("coda", "coda-guided")
"""Renewed as the policy changes: by classifier-free guidance (route B), and by the policy's score (route A, Alg. 1)."""

TRUE_GRADIENT = "true gradient"
"""Trained on the policy's own joint action, which makes Eq. 16-17 the true gradient: the ideal of CODA."""

STATIC_CHUNK = 256
"""Trajectories of a static set that are sampled at once."""


@dataclasses.dataclass(frozen=True)
class GameCodaConfig(Ranged):
    """Settings of Algorithm 2 on games."""

    batch_size: Count = 64
    """Joint actions of a mini-batch (Table 4)."""
    burn_in: NonNegativeCount = 2
    """Initial updates on the recorded data, for all methods (Table 4)."""
    updates_per_renewal: Count = 1
    """Updates between two renewals; beyond about 8 the policy oscillates."""
    w: Annotated[float, Interval(ge=-1.0, lt=math.inf)] = 1.0
    """Scale w of classifier-free guidance (Eq. 3)."""
    guidance: NonNegative = 0.3
    """Guidance scale lambda of Algorithm 1, for the policy-guided route."""
    num_static: Count = 4000
    """Samples in the static sets of the baselines."""
    top_returns: PositiveShare = 0.02
    """Fraction of the highest returns that the Q-conditioned baseline conditions on."""
    condition_noise: NonNegative = 0.0
    """s_y: standard deviation of the noise on y in training, in transformed units.
    Eq. 15 with a policy of standard deviation s has lambda / s^2 = (1 + w) / s_y^2."""


@chex.dataclass(frozen=True)
class GamePrior:
    """One draw of an offline dataset, and the models fitted to it.

    dataset:           the recorded joint actions as trajectories `[N, 1, ...]`.
    transform:         from the data's units to the denoisers' and back.
    policy_denoiser:   weights of the denoiser conditioned on the joint action; without condition it is the
                       unconditional model.
    return_denoiser:   weights of the denoiser conditioned on the return.
    critic:            weights of a fitted critic; None where the reward is known.
    """

    dataset: Trajectory
    transform: transforms.CdfTransform
    policy_denoiser: Params
    return_denoiser: Params
    critic: Params


class Generators(NamedTuple):
    """The two conditional models, for the weights in a `GamePrior`."""

    policy: Generator
    returns: Generator


class Path(NamedTuple):
    """The joint policy along a training, round by round; a burn-in round is one update.

    theta:    `[*batch, T + 1, A]` before each round and after the last.
    gradient: `[*batch, T, A]` mean over a round of its mini-batches' gradients (Eq. 16-17), before they are scaled.
    """

    theta: Float[Array, "*batch points A"]
    gradient: Float[Array, "*batch T A"]


class GameMethods(NamedTuple):
    """The methods on a game, as pure functions; the keys are consumed.

    static_set: `(method, prior, key) -> trajectories [N, 1, ...]` that a static method trains on.
    sample_at:  `(method, prior, theta [A, U], key, num) -> trajectories [num, 1, ...]` of a CODA method.
    train:      `(method, prior, static_set, theta [A, U], key, num_updates) -> path`; `static_set` is not used by the
                methods that renew, and burn-in comes on top of `num_updates`, a multiple of `updates_per_renewal`.
    """

    static_set: Callable[[str, GamePrior, PRNGKey], Trajectory]
    sample_at: Callable[[str, GamePrior, Float[Array, "A U"], PRNGKey, int], Trajectory]
    train: Callable[[str, GamePrior, Trajectory, Float[Array, "A U"], PRNGKey, int], Path]


def game_methods(
    game: PolynomialGame,
    generators: Generators,
    config: GameCodaConfig,
    sampler: SamplerConfig,
    guided_sampler: SamplerConfig,
    learner_config: StatelessMaddpgConfig,
    critic_config: CriticConfig | None = None,
) -> GameMethods:
    """Builds the methods.

    Args:
        game: the game.
        generators: the two conditional models.
        config: settings of Algorithm 2.
        sampler: for all methods but the policy-guided route.
        guided_sampler: for the policy-guided route, whose last guided step overshoots the policy by an amount that
            falls with the square of the number of steps and causes the spread of its samples.
        learner_config: settings of the learner.
        critic_config: settings of a fitted critic; None uses the game's reward.
    """
    env = environment(game)
    model = TrajectoryModel(game.spec, 1, generators.policy, sampler)

    def learner_of(prior: GamePrior, theta: Float[Array, "A U"]) -> Learner:
        value = functools.partial(reward, game)
        if critic_config is not None:
            value = functools.partial(critic_value, critic_config, prior.critic)
        learner = stateless_maddpg(game.spec, value, learner_config)
        return learner._replace(init=lambda key: dataclasses.replace(learner.init(key), theta=theta))

    def augmentation_of(method: str, learner: Learner) -> Augmentation | None:
        match method:
            case "unconditional":
                return unconditional(model)
            case "q-conditioned":
                return return_conditioned(model._replace(generator=generators.returns), config.top_returns, config.w)
            case "coda":
                return classifier_free(model, lambda state: state.theta, config.w)
            case "coda-guided":
                return guided(model._replace(sampler=guided_sampler), learner, config.guidance)
            case "true gradient":
                return oracle(env, learner, horizon=1)
        return None

    def sample(
        method: str, prior: GamePrior, learner: Learner, state: LearnerState, key: PRNGKey, num: int
    ) -> Trajectory:
        augmentation = augmentation_of(method, learner)
        assert augmentation is not None
        lambda_ = jnp.float32(0.0 if augmentation.guidance is None else config.guidance)
        return augmentation.sample(state, one_step_dataset(prior.dataset), _fitted(method, prior), lambda_, key, num)

    def static_set(method: str, prior: GamePrior, key: PRNGKey) -> Trajectory:
        if method == "none":
            return prior.dataset
        key_init, key_sample = jax.random.split(key)
        theta = jnp.zeros((game.spec.num_agents, game.spec.action_dim))  # static sets do not depend on the policy
        learner = learner_of(prior, theta)
        sample_chunk = functools.partial(sample, method, prior, learner, learner.init(key_init))
        return sample_in_chunks(sample_chunk, key_sample, config.num_static, STATIC_CHUNK)

    def sample_at(method: str, prior: GamePrior, theta: Float[Array, "A U"], key: PRNGKey, num: int) -> Trajectory:
        key_init, key_sample = jax.random.split(key)
        learner = learner_of(prior, theta)
        return sample(method, prior, learner, learner.init(key_init), key_sample, num)

    def train(
        method: str,
        prior: GamePrior,
        static_set: Trajectory,
        theta: Float[Array, "A U"],
        key: PRNGKey,
        num_updates: int,
    ) -> Path:
        learner = learner_of(prior, theta)
        renewed = None if method in STATIC_METHODS else augmentation_of(method, learner)
        recorded = one_step_dataset(prior.dataset)
        dataset = one_step_dataset(static_set) if method in STATIC_METHODS else recorded
        num_rounds = num_updates // config.updates_per_renewal
        # The true gradient never sees the recorded data.
        burn_in = (renewed if method == TRUE_GRADIENT else None, recorded, 1, config.burn_in)
        rest = (renewed, dataset, config.updates_per_renewal, num_rounds)
        state, parts = learner.init(jax.random.fold_in(key, 0)), [(theta.reshape(1, -1), jnp.zeros((0, len(theta))))]
        for number, (augmentation, data, updates_per_round, rounds) in enumerate((burn_in, rest)):
            if rounds == 0:
                continue
            trainer = make_trainer(env, learner, augmentation, settings_of(config, updates_per_round, rounds))
            start = trainer.init(jax.random.fold_in(key, 1 + number))
            start = dataclasses.replace(start, learner=state)
            state, after, gradient = _path(trainer, start, data, _fitted(method, prior))
            parts.append((after, gradient))
        return Path(*(jnp.concatenate(leaves) for leaves in zip(*parts, strict=True)))

    return GameMethods(static_set, sample_at, train)


def _fitted(method: str, prior: GamePrior) -> Prior:
    denoiser = prior.return_denoiser if method == "q-conditioned" else prior.policy_denoiser
    return Prior(transform=prior.transform, denoiser=denoiser)


def settings_of(config: GameCodaConfig, updates_per_round: int, num_rounds: int) -> CodaConfig:
    """Algorithm 2 with alpha = 1 and without evaluation; every synthetic trajectory is used once."""
    num_trajectories = updates_per_round * config.batch_size
    return CodaConfig(
        horizon=1,
        batch_size=config.batch_size,
        mix_ratio=1.0,
        epochs_per_round=1,
        updates_per_epoch=updates_per_round,
        num_rounds=num_rounds,
        num_trajectories=num_trajectories,
        chunk_size=num_trajectories,
        evaluation_episodes=0,
        reference_trajectories=0,
        reuse=False,
    )


def _path(trainer: Trainer, state: TrainingState, dataset: Dataset, prior: Prior) -> tuple[LearnerState, Array, Array]:
    """Runs a training: the learner's last state, the policy after each round of updates, and each round's gradient."""

    def observe(state: TrainingState, report: Report) -> tuple[Array, Array]:
        names = sorted(name for name in report.metrics if name.startswith("gradient_"))
        return state.learner.theta.reshape(-1), jnp.stack([report.metrics[name] for name in names])

    state, (theta, gradient) = trainer.run(state, dataset, prior, observe)
    updates = jnp.array([at for at, scheduled in enumerate(trainer.schedule) if scheduled.number > 0])
    return state.learner, theta[updates], gradient[updates]
