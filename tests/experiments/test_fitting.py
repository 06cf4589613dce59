import dataclasses

import jax
import pytest

from coda_jax.data.coordination import SameSideData, convention_episodes
from coda_jax.data.dataset import split_episodes
from coda_jax.diffusion.generator import GeneratorConfig
from coda_jax.diffusion.unet import UNetConfig
from coda_jax.envs.coordination import same_side
from experiments.host.checkpoints import Checkpoints
from experiments.host.devices import set_up_devices
from experiments.pipeline import fitting
from experiments.pipeline.settings import PRESETS


@pytest.mark.slow
@pytest.mark.parametrize(("num_updates", "optimizer"), [(2, "adam"), (3, "adam"), (3, "muon")])
def test_a_fit_makes_as_many_updates_as_are_asked_for(num_updates, optimizer, monkeypatch, tmp_path):
    monkeypatch.setenv("CODA_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(fitting, "UPDATES_PER_CHUNK", 2)
    steps = []
    save = Checkpoints.save

    def record(self, step, tree, notes=None):
        steps.append(step)
        save(self, step, tree, notes)

    monkeypatch.setattr(Checkpoints, "save", record)
    denoiser = GeneratorConfig(
        unet=UNetConfig(width=4, channel_multipliers=(1,)), num_updates=num_updates, batch_size=8, optimizer=optimizer
    )
    smoke = PRESETS["smoke"]
    config = dataclasses.replace(smoke, denoiser=denoiser, training=dataclasses.replace(smoke.training, horizon=10))
    train, held_out = split_episodes(convention_episodes(SameSideData(num_episodes=10), jax.random.key(0)), 0.2)
    fitted = fitting.fit_prior(config, same_side().spec, train, held_out, set_up_devices(2))
    assert steps == [2, 3][: num_updates - 1]
    again = fitting.fit_prior(config, same_side().spec, train, held_out, set_up_devices(2))
    assert again.denoiser == fitted.denoiser and len(steps) == num_updates - 1
