"""Fitting the prior: the transform and the denoiser of a dataset, once; the fit is kept in the cache."""

import functools
import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from coda_jax import transforms
from coda_jax.data.dataset import Dataset, Episodes, make_dataset
from coda_jax.diffusion.generator import GeneratorConfig, GeneratorState
from coda_jax.dynamics.ensemble import Dynamics, make_dynamics
from coda_jax.prior import (
    FILE,
    Prior,
    TrajectoryModel,
    encode,
    fit_transform,
    fit_updates,
    held_out_loss,
    make_model,
    save_prior,
)
from coda_jax.types import Metrics, PRNGKey, TaskSpec
from experiments.host.cache import backend_identity, cache_folder, cache_key, lock
from experiments.host.checkpoints import Checkpoints, open_cached
from experiments.host.console import phase
from experiments.host.devices import on_one_device, replicated
from experiments.host.errors import UserError
from experiments.host.hosts import check_equal, in_first, is_first
from experiments.pipeline.settings import ExperimentConfig, needs_dynamics

UPDATES_PER_CHUNK = 500
"""Updates between two checkpoints of a fit."""

HELD_OUT_WINDOWS = 2048
"""Windows that measure the held-out loss."""


class Fit(NamedTuple):
    """A dataset on the devices, and the prior fitted to it.

    model:         the static side of the prior.
    dataset:       windows of the training episodes, on all devices of the mesh.
    held_out:      windows of the held-out episodes.
    data:          digest of the training episodes.
    denoiser:      digest of the fitted transform and weights; None without a fit.
    prior:         the fit, on all devices; `()` for a run that never samples from a denoiser.
    dynamics:      the one-step model, on all devices; None for a run that does without.
    held_out_loss: loss of the averaged weights on held-out episodes; None without a fit.
    """

    model: TrajectoryModel
    dataset: Dataset
    held_out: Dataset
    data: str
    denoiser: str | None
    prior: Prior | tuple[()]
    dynamics: Dynamics | None
    held_out_loss: float | None


def fit_prior(
    config: ExperimentConfig, spec: TaskSpec, train: Episodes, held_out: Episodes, mesh: Mesh, is_fitted: bool = True
) -> Fit:
    """Fits the CDF transform and the denoiser to the training episodes, or takes the fit from the cache.

    The mini-batches are spread over the mesh's devices, also of several hosts. A fit that was interrupted goes on from
    its last checkpoint, and a second run that wants the same fit waits for it. Another `config.fit_seed` is another fit
    to the same episodes: other first weights, mini-batches and noise. The held-out loss is measured with the same
    randomness for all.

    Args:
        config: its data, denoiser, horizon and fit seed.
        spec: sizes of the task.
        train: the episodes to fit to.
        held_out: the episodes to measure the fit on.
        mesh: the devices.
        is_fitted: False fits no denoiser, for runs that never sample from one.

    Raises:
        UserError: the fit ran into NaNs, there are no windows of that horizon, the devices do not divide a batch, or
            hosts differ in their dataset or their fit.
    """
    horizon = config.training.horizon
    if is_fitted and config.denoiser.batch_size % mesh.size:
        raise UserError(
            f"--denoiser.batch-size {config.denoiser.batch_size} does not spread evenly over {mesh.size} devices"
        )
    try:
        windows, held_out_windows = make_dataset(train, horizon), make_dataset(held_out, horizon)
    except ValueError as error:
        raise UserError(f"--training.horizon {horizon}: {error}") from error
    tokens = np.asarray(transforms.pack(windows.steps))
    content = hashlib.sha256(tokens.tobytes() + train.bounds.tobytes()).hexdigest()
    check_equal("their dataset", content)
    model = make_model(spec, horizon, config.denoiser, config.diffusion)
    dataset = replicated(windows, mesh)
    fit = Fit(model, dataset, held_out_windows, content, denoiser=None, prior=(), dynamics=None, held_out_loss=None)
    if is_fitted:
        fit = _with_prior(config, fit, mesh)
    if needs_dynamics(config):
        fit = _with_dynamics(config, fit, mesh)
    check_equal("the fit", f"{fit.denoiser} {_digest(fit.dynamics)}")
    return fit


def _with_prior(config: ExperimentConfig, fit: Fit, mesh: Mesh) -> Fit:
    generator, spec = fit.model.generator, fit.model.spec
    key_init, key_encode, key_updates = (_fit_key(part, config.fit_seed) for part in (0, 1, 4))
    transform = replicated(fit_transform(fit.dataset, spec, config.data.uniform_unbounded), mesh)
    state = replicated(jax.jit(generator.init)(key_init), mesh)
    jitted_encode = jax.jit(encode)
    entry = cache_folder() / "denoisers" / cache_key(_identity(config, fit))
    with in_first(lock(entry, f"the denoiser of {spec.name}")):
        checkpoints, restored = open_cached(entry, state)
        if restored is not None:
            state = restored.tree
        if int(state.step) < config.denoiser.num_updates:
            # On one device alone: the temporary arrays are several times as large as the dataset.
            alone = on_one_device((transform, fit.dataset), mesh)
            z = replicated(jitted_encode(*alone, key_encode), mesh)
            state = _fit(fit, config.denoiser, state, z, key_updates, mesh, checkpoints)
        checkpoints.close()
        prior = Prior(transform=transform, denoiser=state.ema)
        if is_first() and not (entry / FILE).exists():
            save_prior(entry / FILE, fit.model, prior)
    measure = jax.jit(functools.partial(held_out_loss, generator, num_windows=HELD_OUT_WINDOWS))
    held_out_z = jitted_encode(transform, fit.held_out, jax.random.key(2))
    loss = measure(state.ema, fit.held_out, held_out_z, jax.random.key(3))
    return fit._replace(denoiser=_digest(prior), prior=prior, held_out_loss=float(loss))


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _with_dynamics(config: ExperimentConfig, fit: Fit, mesh: Mesh) -> Fit:
    """Fits the one-step model on one device, or takes it from the cache."""
    spec, fitted = fit.model.spec, make_dynamics(fit.model.spec, config.dynamics).fit
    key = jax.random.fold_in(jax.random.key(5), config.fit_seed)
    dataset = on_one_device(fit.dataset, mesh)
    identity = {"data": fit.data, "config": config.dynamics, "horizon": fit.model.horizon, "seed": config.fit_seed}
    entry = cache_folder() / "dynamics" / cache_key(identity)
    with in_first(lock(entry, f"the one-step model of {spec.name}")):
        shared = NamedSharding(mesh, PartitionSpec())
        shapes = jax.eval_shape(fitted, dataset, key)
        template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shared), shapes)
        checkpoints, restored = open_cached(entry, template)
        if restored is None:
            with phase("fitting the one-step model"):
                dynamics = jax.block_until_ready(jax.jit(fitted)(dataset, key))
            broken = [bool(np.any(~np.isfinite(leaf))) for leaf in jax.tree.leaves(dynamics)]
            if any(broken):
                raise UserError("NaN while fitting the one-step model; lower --dynamics.learning-rate")
            dynamics = replicated(dynamics, mesh)
            checkpoints.save(config.dynamics.num_updates, dynamics)
        else:
            dynamics = restored.tree
        checkpoints.close()
    return fit._replace(dynamics=dynamics)


def _identity(config: ExperimentConfig, fit: Fit) -> dict[str, Any]:
    identity: dict[str, Any] = {
        "data": fit.data,
        "uniform": config.data.uniform_unbounded,
        "config": config.denoiser,
        "horizon": fit.model.horizon,
    }
    # A fit on a CPU and the first seed's keep the names that they had before there were others.
    if config.fit_seed:
        identity["seed"] = config.fit_seed
    return identity | backend_identity(config.precision)


def _fit_key(part: int, seed: int) -> PRNGKey:
    key = jax.random.key(part)
    return jax.random.fold_in(key, seed) if seed else key


def _fit(
    fit: Fit,
    config: GeneratorConfig,
    state: GeneratorState,
    z: Float[Array, "T C"],
    key: PRNGKey,
    mesh: Mesh,
    checkpoints: Checkpoints,
) -> GeneratorState:
    """Updates from `state.step` on to the end; every chunk has a key of its own, so resuming changes nothing."""
    split = NamedSharding(mesh, PartitionSpec("seed"))

    @functools.partial(jax.jit, donate_argnums=0, static_argnums=4)
    def chunk(
        state: GeneratorState, dataset: Dataset, z: Array, key: PRNGKey, num_updates: int
    ) -> tuple[GeneratorState, Metrics]:
        def constrain(batch: Array) -> Array:
            return jax.lax.with_sharding_constraint(batch, split)

        return fit_updates(fit.model.generator, state, dataset, z, key, num_updates, constrain=constrain)

    with phase("fitting the denoiser", total=config.num_updates, done=int(state.step)) as progress:
        while int(state.step) < config.num_updates:
            num_updates = min(UPDATES_PER_CHUNK, config.num_updates - int(state.step))
            state, metrics = chunk(state, fit.dataset, z, key, num_updates)
            loss = float(metrics["loss"])
            if not np.isfinite(loss):
                rate = "muon-learning-rate" if config.optimizer == "muon" else "learning-rate"
                raise UserError(
                    f"NaN while fitting the denoiser, before update {int(state.step)}; lower --denoiser.{rate}"
                )
            checkpoints.save(int(state.step), state)
            progress.advance(num_updates, f"loss {loss:.3f}")
    return state
