"""Priors as files: the same weights and samples after loading."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from coda_jax.artefact import ArtefactError, from_plain, read_artefact, write_artefact
from coda_jax.data.dataset import make_dataset
from coda_jax.diffusion.edm import NoiseConfig
from coda_jax.diffusion.generator import GeneratorConfig
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.diffusion.unet import UNetConfig
from coda_jax.prior import Prior, fit_transform, load_prior, make_model, sample_trajectories, save_prior
from tests.drift import SPEC, drift_episodes

CONFIG = GeneratorConfig(unet=UNetConfig(width=4, channel_multipliers=(1,)), num_updates=2, batch_size=8)
SAMPLER = SamplerConfig(num_steps=3, sigma_max=40.0)


@pytest.fixture(scope="module")
def unsaved():
    model = make_model(SPEC, 3, CONFIG, SAMPLER)
    transform = fit_transform(make_dataset(drift_episodes(20), 3), SPEC)
    # The last layer begins with zeros, and samples would not depend on the others.
    weights = jax.tree.map(lambda leaf: leaf + 0.1, model.generator.init(jax.random.key(0)).params)
    return model, Prior(transform=transform, denoiser=weights)


def test_a_loaded_prior_is_the_saved_one(unsaved, tmp_path):
    save_prior(tmp_path / "prior.npz", *unsaved)
    model, prior = load_prior(tmp_path)
    assert (model.spec, model.horizon, model.sampler) == (SPEC, 3, SAMPLER)
    assert model.generator.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, prior, unsaved[1])


@pytest.mark.slow
def test_a_loaded_prior_samples_the_same_trajectories(unsaved, tmp_path):
    save_prior(tmp_path / "prior.npz", *unsaved)
    model, prior = load_prior(tmp_path)
    with jax.debug_key_reuse(False):
        expected = sample_trajectories(unsaved[0], unsaved[1], jax.random.key(1), 5)
        found = sample_trajectories(model, prior, jax.random.key(1), 5)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_weights_of_another_network_are_refused(unsaved, tmp_path):
    wider = make_model(SPEC, 3, GeneratorConfig(unet=UNetConfig(width=8)), SAMPLER)
    save_prior(tmp_path / "prior.npz", wider, unsaved[1])
    with pytest.raises(ArtefactError, match="not those of its network"):
        load_prior(tmp_path)


def test_unknown_settings_and_a_later_format_are_refused(unsaved, tmp_path, monkeypatch):
    monkeypatch.setattr("coda_jax.artefact.FORMAT", 2)
    save_prior(tmp_path / "prior.npz", *unsaved)
    monkeypatch.undo()
    with pytest.raises(ArtefactError, match="has format 2"):
        load_prior(tmp_path)
    description = {"spec": {"name": "a"}, "horizon": 3, "generator": {"no_such": 1}, "sampler": {}}
    write_artefact(tmp_path / "prior.npz", "prior", description, {"a": np.zeros(1)})
    with pytest.raises(ArtefactError, match="is no prior"):
        load_prior(tmp_path)


def test_a_faulty_horizon_is_refused(unsaved, tmp_path):
    save_prior(tmp_path / "prior.npz", *unsaved)
    description, arrays = read_artefact(tmp_path / "prior.npz", "prior")
    write_artefact(tmp_path / "prior.npz", "prior", description | {"horizon": "x"}, arrays)
    with pytest.raises(ArtefactError, match="horizon is x; it must be a number"):
        load_prior(tmp_path)


def test_a_faulty_transform_is_refused(unsaved, tmp_path):
    model, prior = unsaved
    right = prior.transform
    for faulty, expected in (
        (jax.tree.map(lambda leaf: leaf[1:], right), "its transform is not that of its task"),
        (right.replace(half_rank=0.0 * right.half_rank), "its transform is not that of its task"),
        (right.replace(ranks=np.nan * right.ranks), "its array transform/ranks has NaN"),
    ):
        save_prior(tmp_path / "prior.npz", model, prior.replace(transform=faulty))
        with pytest.raises(ArtefactError, match=expected):
            load_prior(tmp_path)


def test_dataclasses_return_from_json():
    config = GeneratorConfig(unet=UNetConfig(channel_multipliers=(3, 2)), noise=NoiseConfig(), max_grad_norm=0.5)
    assert from_plain(GeneratorConfig(), json.loads(json.dumps(dataclasses.asdict(config)))) == config
