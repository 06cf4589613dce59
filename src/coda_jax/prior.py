"""The prior over joint trajectories: a CDF transform and a denoiser, fitted to a dataset, and samples from it.

Everything is a pure function. `fit_prior` is a whole fit in one call; `fit_transform`, `encode`, `fit_updates` and
`held_out_loss` are its parts, for callers that keep checkpoints, show progress or spread mini-batches over devices.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from coda_jax import transforms
from coda_jax.artefact import ArtefactError, from_plain, read_artefact, write_artefact
from coda_jax.data.dataset import Dataset, sample_index
from coda_jax.diffusion.generator import Generator, GeneratorConfig, GeneratorState, fit_chunk, make_generator
from coda_jax.diffusion.guidance import Denoiser, Guide
from coda_jax.diffusion.samplers import Known, SamplerConfig, sample
from coda_jax.ranges import Count, check_range
from coda_jax.types import Metrics, Params, PRNGKey, TaskSpec, Trajectory

FILE = "prior.npz"
"""Name of the artefact in a run folder, and in the cache's folder of a fitted denoiser."""

Condition = Callable[[Float[Array, "B H C"], PRNGKey], Float[Array, "B K"]]
"""(transformed windows, key) -> the condition y that each is generated from in training."""


@chex.dataclass(frozen=True)
class Prior:
    """A fitted prior; training a policy does not change it, and all seeds share it.

    transform: from the data's units to the denoiser's and back.
    denoiser:  the denoiser's weights.
    """

    transform: transforms.CdfTransform
    denoiser: Params


class TrajectoryModel(NamedTuple):
    """The static side of a prior: its sizes, its network and the sampler."""

    spec: TaskSpec
    horizon: int
    generator: Generator
    sampler: SamplerConfig


def make_model(spec: TaskSpec, horizon: int, config: GeneratorConfig, sampler: SamplerConfig) -> TrajectoryModel:
    """A model of trajectories of `horizon` tokens of a task.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, environment
        >>> env = environment(MULTIPLICATION)
        >>> from coda_jax.diffusion.unet import UNetConfig
        >>> config = cj.GeneratorConfig(unet=UNetConfig(width=4), num_updates=2, batch_size=8)
        >>> model = cj.make_model(env.spec, 1, config, cj.SamplerConfig(num_steps=4))
        >>> model.spec.name, model.horizon
        ('multiplication', 1)
    """
    return TrajectoryModel(spec, horizon, make_generator(config, transforms.num_channels(spec), horizon), sampler)


def fit_transform(dataset: Dataset, spec: TaskSpec, uniform_unbounded: bool = False) -> transforms.CdfTransform:
    """Fits the CDF transform to all steps of a dataset, on the host.

    Args:
        dataset: the steps.
        spec: sizes of the task.
        uniform_unbounded: leave unbounded features uniform (App. E.2), rather than with a logit like the others.
    """
    tokens = np.asarray(transforms.pack(dataset.steps))
    # States, observations and rewards have no bounds; actions do, and a terminal is 0 or 1.
    unbounded = np.full(tokens.shape[-1], uniform_unbounded)
    unbounded[transforms.action_channels(spec)] = unbounded[-1] = False
    return transforms.fit(tokens, unbounded=unbounded)


def encode(transform: transforms.CdfTransform, dataset: Dataset, key: PRNGKey) -> Float[Array, "T C"]:
    """All steps of a dataset in the denoiser's units; the key is consumed by the jitter within atoms."""
    return transforms.forward(transform, transforms.pack(dataset.steps), key)


def fit_updates(
    generator: Generator,
    state: GeneratorState,
    dataset: Dataset,
    z: Float[Array, "T C"],
    key: PRNGKey,
    num_updates: int,
    *,
    condition: Condition | None = None,
    constrain: Callable[[Float[Array, "B H C"]], Float[Array, "B H C"]] = lambda batch: batch,
) -> tuple[GeneratorState, Metrics]:
    """Fits the denoiser for `num_updates` updates; metrics are means over them.

    Args:
        generator: the model that is fitted.
        state: its state.
        dataset: where windows may begin.
        z: the dataset's steps as `encode` gives them.
        key: folded with `state.step`, so that calls one after the other may share it; consumed.
        num_updates: static.
        condition: the condition of each window, for a conditional model.
        constrain: applied to each mini-batch, such as a sharding constraint.
    """

    def sample_batch(key: PRNGKey) -> tuple[Array, Array | None]:
        index = sample_index(dataset, key, generator.config.batch_size, len(dataset.offsets))
        batch = constrain(z[index])
        return batch, None if condition is None else condition(batch, jax.random.fold_in(key, 1))

    return fit_chunk(generator, state, sample_batch, jax.random.fold_in(key, state.step), num_updates)


def held_out_loss(
    generator: Generator, params: Params, dataset: Dataset, z: Float[Array, "T C"], key: PRNGKey, num_windows: int
) -> Float[Array, ""]:
    """The training objective on `num_windows` windows of a held-out dataset; the key is consumed."""
    key_windows, key_loss = jax.random.split(key)
    index = sample_index(dataset, key_windows, num_windows, len(dataset.offsets))
    return generator.loss(params, z[index], key_loss)


def fit_prior(model: TrajectoryModel, dataset: Dataset, key: PRNGKey, condition: Condition | None = None) -> Prior:
    """Fits transform and denoiser to a dataset, for the number of updates that the model's settings ask for.

    Args:
        model: the model that is fitted.
        dataset: windows of at least the model's horizon.
        key: consumed.
        condition: the condition of each window, for a conditional model.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> from coda_jax.diffusion.unet import UNetConfig
        >>> config = cj.GeneratorConfig(unet=UNetConfig(width=4), num_updates=2, batch_size=8)
        >>> model = cj.make_model(env.spec, 1, config, cj.SamplerConfig(num_steps=4))
        >>> prior = cj.fit_prior(model, dataset, jax.random.key(1))
        >>> prior.transform.ranks.shape[0]  # channels: two actions, reward, terminal
        4
    """
    transform = fit_transform(dataset, model.spec)
    key_init, key_encode, key_fit = jax.random.split(key, 3)

    def fit(dataset: Dataset, transform: transforms.CdfTransform) -> Params:
        z = encode(transform, dataset, key_encode)
        state = model.generator.init(key_init)
        num_updates = model.generator.config.num_updates
        state, _ = fit_updates(model.generator, state, dataset, z, key_fit, num_updates, condition=condition)
        return state.ema

    return Prior(transform=transform, denoiser=jax.jit(fit)(dataset, transform))


def sample_trajectories(
    model: TrajectoryModel,
    prior: Prior,
    key: PRNGKey,
    num: int,
    *,
    guide: Guide | None = None,
    guidance: Float[Array, ""] | float = 0.0,
    denoise: Denoiser | None = None,
    known: Known | None = None,
) -> Trajectory:
    """Samples trajectories `[num, H, ...]` in the data's units, by the model's sampler.

    Args:
        model: sizes, network and sampler.
        prior: the fitted weights and transform.
        key: consumed.
        num: trajectories to sample at once, static.
        guide: the guidance direction; None samples the unconditional model.
        guidance: lambda, the guidance scale.
        denoise: the denoiser to sample with, where it is not the prior's own without a condition.
        known: entries of the transformed trajectories that are given.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> from coda_jax.diffusion.unet import UNetConfig
        >>> config = cj.GeneratorConfig(unet=UNetConfig(width=4), num_updates=2, batch_size=8)
        >>> model = cj.make_model(env.spec, 1, config, cj.SamplerConfig(num_steps=4))
        >>> prior = cj.fit_prior(model, dataset, jax.random.key(1))
        >>> cj.sample_trajectories(model, prior, jax.random.key(2), num=6).action.shape
        (6, 1, 2, 1)
    """
    shape = (num, model.horizon, transforms.num_channels(model.spec))
    if denoise is None:
        denoise = prior_denoiser(model, prior)
    z = sample(denoise, key, shape, model.sampler, guide, guidance, known)
    return transforms.unpack(transforms.inverse(prior.transform, z), model.spec)


def prior_denoiser(model: TrajectoryModel, prior: Prior, condition: Float[Array, "... K"] | None = None) -> Denoiser:
    """The prior's denoiser (tau, sigma) -> D(tau; sigma), of a condition or of the null token."""

    def denoise(tau: Float[Array, "B H C"], sigma: Float[Array, ""]) -> Float[Array, "B H C"]:
        if condition is None:
            return model.generator.denoise(prior.denoiser, tau, sigma)
        return model.generator.denoise(prior.denoiser, tau, sigma, condition)

    return denoise


def save_prior(path: str | os.PathLike[str], model: TrajectoryModel, prior: Prior) -> None:
    """Writes a fitted prior and the settings of its model as one `.npz`, atomically; `load_prior` reads it.

    An ensemble is one file for each member.

    Examples:
        >>> import pathlib, tempfile
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> from coda_jax.diffusion.unet import UNetConfig
        >>> config = cj.GeneratorConfig(unet=UNetConfig(width=4), num_updates=2, batch_size=8)
        >>> model = cj.make_model(env.spec, 1, config, cj.SamplerConfig(num_steps=4))
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "prior.npz"
        >>> cj.save_prior(file, model, cj.fit_prior(model, dataset, jax.random.key(1)))
        >>> cj.load_prior(file)[0].sampler.num_steps
        4
    """
    description = {
        "spec": dataclasses.asdict(model.spec),
        "horizon": model.horizon,
        "generator": dataclasses.asdict(model.generator.config),
        "sampler": dataclasses.asdict(model.sampler),
    }
    transform = {field.name: getattr(prior.transform, field.name) for field in dataclasses.fields(prior.transform)}
    write_artefact(path, "prior", description, {"transform": transform, "denoiser": prior.denoiser})


def load_prior(run: str | os.PathLike[str]) -> tuple[TrajectoryModel, Prior]:
    """Reads a fitted prior and its model, ready for `sample_trajectories` and for `guided`.

    Args:
        run: a run folder, the cache's folder of a denoiser, or a file that `save_prior` wrote.

    Raises:
        ArtefactError: there is none, or it cannot be read.

    Examples:
        >>> import pathlib, tempfile
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, DatasetConfig, environment, sample_dataset
        >>> env, key = environment(MULTIPLICATION), jax.random.key(0)
        >>> dataset = cj.one_step_dataset(sample_dataset(MULTIPLICATION, DatasetConfig(), key))
        >>> from coda_jax.diffusion.unet import UNetConfig
        >>> config = cj.GeneratorConfig(unet=UNetConfig(width=4), num_updates=2, batch_size=8)
        >>> model = cj.make_model(env.spec, 1, config, cj.SamplerConfig(num_steps=4))
        >>> run = pathlib.Path(tempfile.mkdtemp())
        >>> cj.save_prior(run / "prior.npz", model, cj.fit_prior(model, dataset, jax.random.key(1)))
        >>> model, prior = cj.load_prior(run)
        >>> cj.sample_trajectories(model, prior, jax.random.key(2), num=6).action.shape
        (6, 1, 2, 1)
    """
    path = Path(run)
    path = path / FILE if path.is_dir() else path
    description, arrays = read_artefact(path, "prior")
    try:
        check_range("horizon", description["horizon"], Count)
        model = make_model(
            TaskSpec(**description["spec"]),
            description["horizon"],
            from_plain(GeneratorConfig(), description["generator"]),
            from_plain(SamplerConfig(), description["sampler"]),
        )
        arrays = jax.tree.map(jnp.asarray, arrays)
        prior = Prior(transform=transforms.CdfTransform(**arrays["transform"]), denoiser=arrays["denoiser"])
        expected = jax.eval_shape(model.generator.init, jax.random.key(0)).ema
        if jax.tree.map(jnp.shape, expected) != jax.tree.map(jnp.shape, prior.denoiser):
            raise ValueError("its weights are not those of its network")
        channels = {leaf.shape[0] for leaf in jax.tree.leaves(prior.transform)}
        if channels != {transforms.num_channels(model.spec)} or not (prior.transform.half_rank > 0).all():
            raise ValueError("its transform is not that of its task")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"{path} is no prior ({' '.join(str(error).split())})") from error
    return model, prior
