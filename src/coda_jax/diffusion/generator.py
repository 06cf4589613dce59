"""The prior over trajectories: denoiser, optimiser and moving average of the weights (paper, App. F.1)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from annotated_types import Interval
from jaxtyping import Array, Bool, Float, Int

from coda_jax.backend import sizes
from coda_jax.diffusion import edm
from coda_jax.diffusion.unet import UNet, UNetConfig
from coda_jax.ranges import Count, NonNegativeCount, Positive, Ranged, RangeError, Share
from coda_jax.types import Metrics, Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class GeneratorConfig(Ranged):
    """How the denoiser is built and fitted; the defaults are those of Table 3, or our choice where a field says so.

    Examples:
        >>> cj.GeneratorConfig(num_updates=500, batch_size=64).learning_rate
        0.001
    """

    unet: UNetConfig = dataclasses.field(default_factory=UNetConfig)
    """Sizes of the network."""
    noise: edm.NoiseConfig = dataclasses.field(default_factory=edm.NoiseConfig)
    """Distribution of the noise levels in training."""
    condition_dim: NonNegativeCount = 0
    """Features of the condition y of classifier-free guidance; 0 for an unconditional model."""
    condition_dropout: Share = 0.1
    """Probability of replacing the condition by the learned null token in training."""
    sigma_data: Positive = 1.0
    """Standard deviation of the transformed data."""
    weight: edm.Weight = "edm"
    """Loss weight over noise levels: EDM's, or the plain squared error of the paper's Eq. 27."""
    num_updates: Count = 10_000
    """Optimiser steps of the whole fit; the cosine of the learning rates ends there, at zero."""
    batch_size: Count = 100_000
    """Trajectories in a mini-batch."""
    optimizer: Literal["adam", "muon"] = "adam"
    """Adam, or Muon (Jordan et al. 2024) for the convolutions and Nadam for the rest: less data to the same loss."""
    learning_rate: Positive = 1e-3
    """Peak learning rate of Adam and Nadam."""
    muon_learning_rate: Positive = 0.05
    """With `muon`, its peak learning rate, that of the convolutions."""
    warmup_fraction: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.05
    """Fraction of the updates with linear warm-up of the learning rates from zero."""
    max_grad_norm: Positive = 1.0
    """Maximum global norm of the gradient (clipping)."""
    ema_decay: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.999
    """Decay of the moving average of the weights, after its warm-up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not round(self.warmup_fraction * self.num_updates) < self.num_updates:
            raise RangeError(
                "warmup_fraction", self.warmup_fraction, f"it must leave some of {self.num_updates} updates"
            )


class GeneratorState(NamedTuple):
    """params: current weights; ema: their moving average, for sampling; step: number of updates so far."""

    params: Params
    ema: Params
    opt_state: optax.OptState
    step: Int[Array, ""]


class UpdateFn(Protocol):
    """Type of `Generator.update`."""

    def __call__(
        self,
        state: GeneratorState,
        z: Float[Array, "B H C"],
        key: PRNGKey,
        condition: Float[Array, "B K"] | None = None,
    ) -> tuple[GeneratorState, Metrics]:
        """One optimiser step on transformed windows z; the key is consumed. Metrics: `loss`, `grad_norm`."""
        ...


class LossFn(Protocol):
    """Type of `Generator.loss`."""

    def __call__(
        self, params: Params, z: Float[Array, "B H C"], key: PRNGKey, condition: Float[Array, "B K"] | None = None
    ) -> Float[Array, ""]:
        """The training objective, including condition dropout; the key is consumed."""
        ...


class DenoiseFn(Protocol):
    """Type of `Generator.denoise`."""

    def __call__(
        self,
        params: Params,
        tau: Float[Array, "*batch H C"],
        sigma: Float[Array, "..."] | float,
        condition: Float[Array, "... K"] | None = None,
    ) -> Float[Array, "*batch H C"]:
        """D(tau; sigma); a conditional model uses its null token for `condition=None`."""
        ...


class Generator(NamedTuple):
    """A trajectory prior: pure functions over `GeneratorState` and weights, and the settings they were built by."""

    init: Callable[[PRNGKey], GeneratorState]
    update: UpdateFn
    loss: LossFn
    denoise: DenoiseFn
    config: GeneratorConfig


def learning_rate_schedule(config: GeneratorConfig, peak: float) -> optax.Schedule:
    """Linear warm-up to the peak, then cosine decay to zero at `num_updates`."""
    warmup_updates = round(config.warmup_fraction * config.num_updates)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_updates, config.num_updates)


def make_optimizer(config: GeneratorConfig) -> optax.GradientTransformation:
    """The optimiser of a fit, with clipping and schedules."""
    rate = learning_rate_schedule(config, config.learning_rate)
    if config.optimizer == "muon":
        muon_rate = learning_rate_schedule(config, config.muon_learning_rate)
        steps = optax.contrib.muon(muon_rate, adam_learning_rate=rate, muon_weight_dimension_numbers=_convolutions)
    else:
        steps = optax.adam(rate)
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), steps)


def _convolutions(params: Params) -> Any:
    """Marks the kernels of the convolutions for Muon, whose cost on a CPU is mostly one of the number of matrices."""

    def mark(path: tuple[Any, ...], leaf: Array) -> optax.contrib.MuonDimensionNumbers | None:
        is_kernel = "taps" in (part.key for part in path) and leaf.ndim == 2
        return optax.contrib.MuonDimensionNumbers() if is_kernel else None

    return jax.tree_util.tree_map_with_path(mark, params)


def update_ema(ema: Params, params: Params, step: Int[Array, ""], decay: float) -> Params:
    """Moving average after update number `step` (from 1): decay min(decay, step / (step + 9)).

    The warm-up of the decay discards the random initial weights: after n early updates the average covers about the
    last n / 10 updates.
    """
    warm_decay = jnp.minimum(decay, step / (step + 9))
    return jax.tree.map(lambda average, new: average + (1 - warm_decay) * (new - average), ema, params)


class _NoisyBatch(NamedTuple):
    """A mini-batch with all its random draws; every leaf has a leading axis of windows."""

    z: Float[Array, "B H C"]
    sigma: Float[Array, "B"]
    eps: Float[Array, "B H C"]
    condition: Float[Array, "B K"] | None
    dropped: Bool[Array, "B"] | None


def num_micro_batches(batch_size: int, max_windows: int) -> int:
    """The least number of equal micro-batches of at most `max_windows` windows into which a mini-batch divides."""
    return next(n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n <= max_windows)


def accumulated_gradient(
    loss_of: Callable[[Params, Any], Float[Array, ""]], params: Params, batch: Any, num_parts: int
) -> tuple[Float[Array, ""], Params]:
    """Value and gradient of a mean over windows, in `num_parts` micro-batches of equal size, one after the other.

    Part i takes the windows i, i + num_parts, ...: each device of a sharded mini-batch has its share of every part.

    Args:
        loss_of: (weights, windows) -> the mean of their losses.
        params: the weights.
        batch: a pytree whose leaves have a leading axis of windows.
        num_parts: a divisor of the number of windows; static.
    """
    if num_parts == 1:
        return jax.value_and_grad(loss_of)(params, batch)

    def split(leaf: Array) -> Array:
        return jnp.swapaxes(leaf.reshape(-1, num_parts, *leaf.shape[1:]), 0, 1)

    def add(total: tuple[Array, Params], part: Any) -> tuple[tuple[Array, Params], None]:
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_of)(params, part)), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add, zero, jax.tree.map(split, batch))
    return jax.tree.map(lambda leaf: leaf / num_parts, total)


def make_generator(
    config: GeneratorConfig, num_channels: int, horizon: int, max_windows: int | None = None
) -> Generator:
    """Builds the prior over windows of `horizon` tokens of `num_channels` channels.

    Args:
        config: its settings.
        num_channels: C.
        horizon: H.
        max_windows: the most windows of a mini-batch whose gradient is computed together, which bounds the memory of
            an update; by default the backend's (`coda_jax.backend.Sizes.windows`).
    """
    network = UNet(config.unet, horizon, config.condition_dim)
    apply = cast(Callable[..., Array], network.apply)
    optimizer = make_optimizer(config)

    @jax.jit  # where a caller does not compile it, a hundred small programs become one
    def init(key: PRNGKey) -> GeneratorState:
        condition = jnp.zeros((1, config.condition_dim)) if config.condition_dim else None
        params = network.init(key, jnp.zeros((1, horizon, num_channels)), jnp.zeros((1, 1, 1)), condition)
        return GeneratorState(params, jax.tree.map(jnp.copy, params), optimizer.init(params), jnp.zeros((), jnp.int32))

    def denoise(params, tau, sigma, condition=None):
        return edm.precondition(functools.partial(apply, params), config.sigma_data)(tau, sigma, condition)

    def draw(z: Array, key: PRNGKey, condition: Array | None) -> _NoisyBatch:
        key_drop, key_loss = jax.random.split(key)
        dropped = None
        if condition is not None:
            dropped = jax.random.bernoulli(key_drop, config.condition_dropout, condition.shape[:-1])
        sigma, eps = edm.draw_noise(z, key_loss, config.noise)
        return _NoisyBatch(z, sigma, eps, condition, dropped)

    def loss_of(params: Params, batch: _NoisyBatch) -> Array:
        network_dropped = functools.partial(apply, params, dropped=batch.dropped)
        return edm.loss_at(
            edm.precondition(network_dropped, config.sigma_data),
            batch.z,
            batch.sigma,
            batch.eps,
            batch.condition,
            sigma_data=config.sigma_data,
            weight=config.weight,
        )

    def loss(params, z, key, condition=None):
        return loss_of(params, draw(z, key, condition))

    def update(state, z, key, condition=None):
        num_parts = num_micro_batches(z.shape[0], sizes().windows if max_windows is None else max_windows)
        batch = draw(z, key, condition)
        value, grads = accumulated_gradient(loss_of, state.params, batch, num_parts)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        ema = update_ema(state.ema, params, step, config.ema_decay)
        return GeneratorState(params, ema, opt_state, step), {"loss": value, "grad_norm": optax.tree.norm(grads)}

    return Generator(init, update, loss, denoise, config)


def fit_chunk(
    generator: Generator,
    state: GeneratorState,
    sample_batch: Callable[[PRNGKey], tuple[Float[Array, "B H C"], Float[Array, "B K"] | None]],
    key: PRNGKey,
    num_updates: int,
) -> tuple[GeneratorState, Metrics]:
    """Scans `num_updates` updates on new mini-batches; metrics are means over the chunk. The key is consumed.

    Call it in a jitted function with the data as an argument of that function, in the closure of `sample_batch`, and
    donate `state`.
    """

    def body(state: GeneratorState, key: PRNGKey) -> tuple[GeneratorState, Metrics]:
        key_batch, key_update = jax.random.split(key)
        z, condition = sample_batch(key_batch)
        return generator.update(state, z, key_update, condition)

    state, metrics = jax.lax.scan(body, state, jax.random.split(key, num_updates))
    return state, jax.tree.map(jnp.mean, metrics)
