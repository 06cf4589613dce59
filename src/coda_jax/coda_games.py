"""CODA (Algorithm 2) on one-step polynomial games, and what it is compared with (Sec. 6.1).

    for round in range(num_rounds):
        synthetic = renew(joint policy)             # Alg. 2, l. 7; every few updates, and no mini-batch is used twice
        for batch in synthetic: update(batch)       # l. 9-12 with alpha = 1

The methods differ in the renewal alone, from the recorded data to samples conditioned on the joint policy. A policy is
two numbers here, compact enough for route B of Sec. 4.2: the denoiser is conditioned on y, the joint action itself in
transformed units (at training the sample's own, at sampling the policy's), by classifier-free guidance. Route A, the
policy's score of Algorithm 1, runs on the same denoiser without condition.

Everything here is of one seed and one draw of the dataset; callers vmap over seeds, which then share a `GamePrior`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coda_jax import transforms
from coda_jax.coda import policy_guide
from coda_jax.diffusion.edm import Denoise
from coda_jax.diffusion.generator import Generator
from coda_jax.diffusion.guidance import Guide, classifier_free
from coda_jax.diffusion.samplers import SamplerConfig, heun_sample, sample_in_chunks
from coda_jax.envs.polynomial import PolynomialGame, as_trajectory, reward
from coda_jax.marl.learner import Learner, LearnerState, uniform_weights
from coda_jax.marl.stateless_maddpg import CriticConfig, StatelessMaddpgConfig, critic_value, stateless_maddpg
from coda_jax.types import Params, PRNGKey, Trajectory

STATIC_METHODS = ("none", "unconditional", "q-conditioned")
"""Trained on a set that never changes: the recorded data; samples of the unconditional model; samples conditioned on
high returns."""

CODA_METHODS = ("coda", "coda-guided")
"""Renewed along with the policy: by classifier-free guidance (route B), and by the policy's score (route A, Alg. 1)."""

TRUE_GRADIENT = "true gradient"
"""Trained on the policy's own joint action, which makes Eq. 16-17 the true gradient: what CODA should come close to."""

LARGEST_CONDITION = 2.5
"""Conditions y are clipped to this, one part in 93 of the data on either side: a denoiser that has seen a corner of the
square once extrapolates there, and may lead away from it."""

Renewal = Callable[[LearnerState, PRNGKey, int], Trajectory]
"""(state, key, num) -> trajectories `[num, 1, ...]` for the updates to come; the key is consumed."""


@dataclasses.dataclass(frozen=True)
class GameCodaConfig:
    """Settings of Algorithm 2 on games."""

    batch_size: int = 64
    """Joint actions of a mini-batch (Table 4)."""
    burn_in: int = 2
    """Updates on the recorded data that come first, whatever the method (Table 4)."""
    updates_per_renewal: int = 1
    """Updates between two renewals; beyond about 8 the policy oscillates."""
    w: float = 1.0
    """Scale of classifier-free guidance (Eq. 3)."""
    guidance: float = 0.3
    """lambda of Algorithm 1, in the policy-guided route."""
    num_static: int = 4000
    """Samples in the static sets of the baselines."""
    top_returns: float = 0.02
    """Share of the returns, the highest, that the q-conditioned baseline asks for."""
    condition_noise: float = 0.0
    """s_y: standard deviation of the noise on y in training, in transformed units. Eq. 15 with a policy of standard
    deviation s has lambda / s^2 = (1 + w) / s_y^2."""


@chex.dataclass(frozen=True)
class GamePrior:
    """One draw of an offline dataset, and what is fitted to it.

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
    """The joint policy along a training.

    theta:    `[*batch, T + 1, A]` before each update and after the last.
    gradient: `[*batch, T, A]` of each mini-batch (Eq. 16-17), before it is scaled.
    """

    theta: Float[Array, "*batch points A"]
    gradient: Float[Array, "*batch T A"]


class GameCoda(NamedTuple):
    """The methods on a game, as pure functions; the keys are consumed.

    static_set:      `(method, prior, key) -> trajectories [N, 1, ...]` that a static method trains on.
    sample_at:       `(method, prior, theta [A, U], key, num) -> trajectories [num, 1, ...]` of a CODA method.
    train:           `(method, prior, static_set, theta [A, U], key, num_updates) -> path`; `static_set` is not used by
                     the methods that renew, and burn-in comes on top of `num_updates`, a multiple of
                     `updates_per_renewal`.
    """

    static_set: Callable[[str, GamePrior, PRNGKey], Trajectory]
    sample_at: Callable[[str, GamePrior, Float[Array, "A U"], PRNGKey, int], Trajectory]
    train: Callable[[str, GamePrior, Trajectory, Float[Array, "A U"], PRNGKey, int], Path]


def conditions(z: Float[Array, "N 1 C"], config: GameCodaConfig, key: PRNGKey) -> tuple[Array, Array]:
    """The conditions y of transformed data for the two models: the joint action `[N, A]` and the return `[N, 1]`.

    The key is consumed by the noise on the joint action.
    """
    action = jnp.clip(z[:, 0, :-2], -LARGEST_CONDITION, LARGEST_CONDITION)
    return action + config.condition_noise * jax.random.normal(key, action.shape), z[:, 0, -2:-1]


def game_coda(
    game: PolynomialGame,
    generators: Generators,
    config: GameCodaConfig,
    sampler: SamplerConfig,
    guided_sampler: SamplerConfig,
    learner_config: StatelessMaddpgConfig,
    critic_config: CriticConfig | None = None,
) -> GameCoda:
    """Builds the methods; the critic is the game's reward, or one fitted as `critic_config` says.

    The policy-guided route has a sampler of its own: its last guided step overshoots the policy by an amount that falls
    with the square of the number of steps, and is what spreads its samples.
    """
    spec = game.spec
    num_channels = transforms.num_channels(spec)
    action_channels = transforms.action_channels(spec)

    def learner_of(prior: GamePrior) -> Learner:
        if critic_config is None:
            return stateless_maddpg(spec, functools.partial(reward, game), learner_config)
        return stateless_maddpg(spec, functools.partial(critic_value, critic_config, prior.critic), learner_config)

    def sample(
        prior: GamePrior,
        denoise: Denoise,
        y: Float[Array, "... K"] | None,
        key: PRNGKey,
        num: int,
        sampler: SamplerConfig = sampler,
        guide: Guide | None = None,
    ) -> Trajectory:
        def conditional(tau: Array, sigma: Array) -> Array:
            return denoise(tau, sigma, y)

        denoiser = denoise if y is None else classifier_free(conditional, denoise, config.w)
        z = heun_sample(denoiser, key, (num, 1, num_channels), sampler, guide, config.guidance)
        return transforms.unpack(transforms.inverse(prior.transform, z), spec)

    def static_set(method: str, prior: GamePrior, key: PRNGKey) -> Trajectory:
        if method == "none":
            return prior.dataset

        def chunk(key: PRNGKey, num: int) -> Trajectory:
            if method == "unconditional":
                return sample(
                    prior, functools.partial(generators.policy.denoise, prior.policy_denoiser), None, key, num
                )
            key_return, key_sample = jax.random.split(key)
            u = jax.random.uniform(key_return, (num, 1), minval=1.0 - config.top_returns, maxval=1.0)
            y = jnp.log(u / jnp.maximum(1.0 - u, transforms.CLIP)) / transforms.LOGISTIC_STD  # as `transforms.forward`
            denoise = functools.partial(generators.returns.denoise, prior.return_denoiser)
            return sample(prior, denoise, y, key_sample, num)

        def tokens(key: PRNGKey, num: int) -> Array:
            return transforms.pack(chunk(key, num))

        return transforms.unpack(sample_in_chunks(tokens, key, config.num_static, 256), spec)

    def sample_at(method: str, prior: GamePrior, theta: Float[Array, "A U"], key: PRNGKey, num: int) -> Trajectory:
        denoise = functools.partial(generators.policy.denoise, prior.policy_denoiser)
        key_condition, key_sample = jax.random.split(key)
        if method == "coda":
            encoding = transforms.select(prior.transform, action_channels)
            y = transforms.forward(encoding, theta.reshape(1, -1), key_condition)
            y = jnp.clip(y, -LARGEST_CONDITION, LARGEST_CONDITION)
            return sample(prior, denoise, y, key_sample, num)
        learner = learner_of(prior)
        state = dataclasses.replace(learner.init(key_condition), theta=theta)
        guide = policy_guide(learner, state, prior.transform, spec)
        return sample(prior, denoise, None, key_sample, num, guided_sampler, guide)

    def train(
        method: str,
        prior: GamePrior,
        static_set: Trajectory,
        theta: Float[Array, "A U"],
        key: PRNGKey,
        num_updates: int,
    ) -> Path:
        learner = learner_of(prior)
        key_init, key_burn_in, key_train = jax.random.split(key, 3)

        def renew_coda(state: LearnerState, key: PRNGKey, num: int) -> Trajectory:
            return sample_at(method, prior, state.theta, key, num)

        def renew_exactly(state: LearnerState, key: PRNGKey, num: int) -> Trajectory:
            return as_trajectory(game, jnp.broadcast_to(state.theta, (num, *state.theta.shape)))

        renew, burn_in = recorded(static_set), recorded(prior.dataset)
        if method in CODA_METHODS:
            renew = renew_coda
        elif method == TRUE_GRADIENT:
            renew, burn_in = renew_exactly, renew_exactly
        state = dataclasses.replace(learner.init(key_init), theta=theta)
        state, first = train_rounds(learner, state, burn_in, key_burn_in, config.burn_in, 1, config.batch_size)
        num_rounds = num_updates // config.updates_per_renewal
        state, rest = train_rounds(
            learner, state, renew, key_train, num_rounds, config.updates_per_renewal, config.batch_size
        )
        gradient = jnp.concatenate([first.gradient, rest.gradient])
        return Path(jnp.concatenate([first.theta, rest.theta, state.theta.reshape(1, -1)]), gradient)

    return GameCoda(static_set, sample_at, train)


def recorded(trajectories: Trajectory) -> Renewal:
    """Rows of a set that does not change, drawn with replacement."""

    def renew(state: LearnerState, key: PRNGKey, num: int) -> Trajectory:
        rows = jax.random.randint(key, (num,), 0, trajectories.reward.shape[0])
        return jax.tree.map(lambda leaf: leaf[rows], trajectories)

    return renew


def train_rounds(
    learner: Learner,
    state: LearnerState,
    renew: Renewal,
    key: PRNGKey,
    num_rounds: int,
    updates_per_renewal: int,
    batch_size: int,
) -> tuple[LearnerState, Path]:
    """Algorithm 2 with alpha = 1 on a stateless learner; the path lacks the state returned. The key is consumed."""

    def update(state: LearnerState, inputs: tuple[Trajectory, PRNGKey]) -> tuple[LearnerState, Path]:
        batch, key = inputs
        next_state, metrics = learner.update(state, batch, uniform_weights(batch_size), key)
        gradient = jnp.stack([metrics[name] for name in sorted(metrics)])
        return next_state, Path(state.theta.reshape(-1), gradient)

    def round_(state: LearnerState, key: PRNGKey) -> tuple[LearnerState, Path]:
        key_renew, key_updates = jax.random.split(key)
        fresh = renew(state, key_renew, updates_per_renewal * batch_size)
        batches = jax.tree.map(lambda leaf: leaf.reshape(updates_per_renewal, batch_size, *leaf.shape[1:]), fresh)
        return jax.lax.scan(update, state, (batches, jax.random.split(key_updates, updates_per_renewal)))

    state, path = jax.lax.scan(round_, state, jax.random.split(key, num_rounds))
    return state, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), path)
