"""Fitting the prior: the transform and the denoiser of a dataset, once; the fit is kept in the cache."""

import dataclasses
import functools
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from coda_jax import transforms
from coda_jax.coda import Prior
from coda_jax.data.dataset import Dataset, Episodes, make_dataset, sample_index
from coda_jax.diffusion.generator import Generator, GeneratorConfig, GeneratorState, fit_chunk, make_generator
from coda_jax.types import Metrics, Params, PRNGKey, TaskSpec
from experiments.host.cache import cache_folder, key_of, lock
from experiments.host.checkpoints import Checkpoints
from experiments.host.console import phase
from experiments.host.errors import UserError
from experiments.pipeline.settings import DataConfig

UPDATES_PER_CHUNK = 500
"""Updates between two checkpoints of a fit."""

HELD_OUT_WINDOWS = 2048
"""Windows that measure the held-out loss."""


class Fit(NamedTuple):
    """A fitted prior, and how well it fits."""

    generator: Generator
    prior: Prior
    held_out: Dataset
    """Windows of the held-out episodes."""
    held_out_loss: float | None
    """Loss of the averaged weights on held-out episodes; None if nothing was fitted."""
    data: str
    """Digest of the training episodes."""


def fit_prior(
    train: Episodes,
    held_out: Episodes,
    data: DataConfig,
    config: GeneratorConfig,
    spec: TaskSpec,
    horizon: int,
    mesh: Mesh,
    seed: int | None = 0,
) -> Fit:
    """Fits the CDF transform and the denoiser to the training episodes, or takes the fit from the cache.

    The mini-batches are spread over the mesh's devices. A fit that was interrupted goes on from its last checkpoint,
    and a second process that wants the same fit waits for it. Another `seed` is another fit to the same episodes: other
    first weights, mini-batches and noise; None is no fit, for runs that never sample: first weights, and no loss. The
    held-out loss is measured with the same randomness for all.

    Raises:
        UserError: the fit ran into NaNs, there are no windows of that horizon, or the devices do not divide a batch.
    """
    if seed is not None and config.batch_size % mesh.size:
        raise UserError(f"--denoiser.batch-size {config.batch_size} does not spread evenly over {mesh.size} devices")
    try:
        windows, held_out_windows = make_dataset(train, horizon), make_dataset(held_out, horizon)
    except ValueError as error:
        raise UserError(f"--training.horizon {horizon}: {error}") from error
    tokens = np.asarray(transforms.pack(windows.steps))
    # States, observations and rewards have no bounds; actions do, and a terminal is 0 or 1.
    unbounded = np.full(tokens.shape[-1], data.uniform_unbounded)
    unbounded[transforms.action_channels(spec)] = unbounded[-1] = False
    transform = transforms.fit(tokens, unbounded=unbounded)
    generator = make_generator(config, tokens.shape[-1], horizon)
    shared = NamedSharding(mesh, PartitionSpec())
    prior = Prior(dataset=windows, transform=transform, denoiser=None)
    key_init, key_encode, key_updates = (_fit_key(part, seed) for part in (0, 1, 4))
    state = jax.device_put(jax.jit(generator.init)(key_init), shared)
    content = hashlib.sha256(tokens.tobytes() + train.bounds.tobytes()).hexdigest()
    if seed is None:
        return Fit(generator, dataclasses.replace(prior, denoiser=state.ema), held_out_windows, None, content)
    identity = {"data": content, "uniform": data.uniform_unbounded, "config": config, "horizon": horizon}
    if seed:  # the first fit keeps the name it had before there were others
        identity["seed"] = seed
    entry = cache_folder() / "denoisers" / key_of(identity)

    encode = jax.jit(transforms.forward)
    with lock(entry, f"the denoiser of {spec.name}"):
        checkpoints = Checkpoints(entry)
        restored = checkpoints.restore(state)
        if restored is not None:
            state = restored.tree
        if int(state.step) < config.num_updates:
            z = encode(transform, jnp.asarray(tokens), key_encode)
            state = _fit(generator, config, state, windows, z, key_updates, mesh, checkpoints)
        checkpoints.close()
    held_out_z = encode(transform, transforms.pack(held_out_windows.steps), jax.random.key(2))
    loss = jax.jit(functools.partial(_held_out_loss, generator))(state.ema, held_out_windows, held_out_z)
    return Fit(generator, dataclasses.replace(prior, denoiser=state.ema), held_out_windows, float(loss), content)


def _fit_key(part: int, seed: int | None) -> PRNGKey:
    key = jax.random.key(part)
    return jax.random.fold_in(key, seed) if seed else key


def _held_out_loss(generator: Generator, params: Params, windows: Dataset, z: Float[Array, "T C"]) -> Array:
    key_windows, key_loss = jax.random.split(jax.random.key(3))
    index = sample_index(windows, key_windows, HELD_OUT_WINDOWS, len(windows.offsets))
    return generator.loss(params, z[index], key_loss)


def _fit(
    generator: Generator,
    config: GeneratorConfig,
    state: GeneratorState,
    windows: Dataset,
    z: Float[Array, "T C"],
    key: PRNGKey,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> GeneratorState:
    """Updates from `state.step` on to the end; every chunk has a key of its own, so resuming changes nothing."""
    shared, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("seed"))
    windows, z = jax.device_put((windows, z), shared)

    @functools.partial(jax.jit, donate_argnums=0)
    def chunk(state: GeneratorState, windows: Dataset, z: Array, key: PRNGKey) -> tuple[GeneratorState, Metrics]:
        def sample_batch(key: PRNGKey) -> tuple[Array, None]:
            index = sample_index(windows, key, config.batch_size, len(windows.offsets))
            return jax.lax.with_sharding_constraint(z[index], split), None

        key = jax.random.fold_in(key, state.step)
        return fit_chunk(generator, state, sample_batch, key, UPDATES_PER_CHUNK)

    with phase("fitting the denoiser", total=config.num_updates, done=int(state.step)) as progress:
        while int(state.step) < config.num_updates:
            state, metrics = chunk(state, windows, z, key)
            loss = float(metrics["loss"])
            if not np.isfinite(loss):
                raise UserError(
                    f"NaN while fitting the denoiser, before update {int(state.step)}; lower --denoiser.learning-rate"
                )
            checkpoints.save(int(state.step), state)
            progress.advance(UPDATES_PER_CHUNK, f"loss {loss:.3f}")
    return state
