"""Synthetic trajectories of a run, as arrays and as a vault."""

import jax
import numpy as np
import pytest

from coda_jax.data.dataset import episodes_from_arrays, make_dataset
from coda_jax.data.vault import read_vault
from coda_jax.diffusion.generator import GeneratorConfig
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.diffusion.unet import UNetConfig
from coda_jax.evaluation import action_log_likelihood
from coda_jax.marl.input_scale import raw_inputs
from coda_jax.marl.maddpg_bc import MaddpgBcConfig, maddpg_bc
from coda_jax.policy import load_policy, policy_of, save_policy
from coda_jax.prior import fit_prior, make_model, save_prior
from experiments import generate
from experiments.generate import GenerateConfig, sample
from tests.drift import SPEC, drift_episodes
from tests.lowering import lower_for_accelerators, recorded_programs

HORIZON = 4
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = GeneratorConfig(unet=UNetConfig(width=16, channel_multipliers=(1, 1)), num_updates=150, batch_size=64)
    model = make_model(SPEC, HORIZON, config, SamplerConfig(num_steps=8))
    learner = maddpg_bc(SPEC, MaddpgBcConfig(policy_linear_width=3, policy_hidden_width=2), raw_inputs(SPEC))
    with jax.debug_key_reuse(False):
        save_prior(
            folder / "prior.npz", model, fit_prior(model, make_dataset(drift_episodes(40), HORIZON), jax.random.key(0))
        )
        states = jax.vmap(learner.init)(jax.random.split(jax.random.key(1), 2))
    save_policy(folder / "policy.npz", policy_of(SPEC, states, (0, 1), rounds=1))
    return folder


@pytest.fixture(autouse=True)
def no_compilation_cache(monkeypatch):
    monkeypatch.setattr(generate, "enable_compilation_cache", lambda: None)


def command(*args):
    with jax.debug_key_reuse(False):
        generate.main([*map(str, args)])


def test_arrays_and_vault_hold_the_same_episodes(run, tmp_path):
    command(run, "--num", 70, "--output", tmp_path / "new" / "synthetic.npz")
    command(run, "--num", 70, "--output", tmp_path / "drift.vlt" / "Synthetic")
    with np.load(tmp_path / "new" / "synthetic.npz") as stored:
        arrays = episodes_from_arrays(**stored)
    vault = read_vault(tmp_path / "drift.vlt", SPEC)
    assert np.diff(arrays.bounds).tolist() == [HORIZON] * 70
    assert np.abs(arrays.action).max() <= 1
    for name in ("state", "obs", "action", "reward", "terminal", "truncation"):
        np.testing.assert_array_equal(getattr(arrays, name), getattr(vault, name))


def test_guidance_raises_the_policy_s_likelihood(run):
    policy = load_policy(run)
    for seed in policy.seeds:
        with jax.debug_key_reuse(False):
            plain, steered = (
                sample(GenerateConfig(run, run, num=64, guidance=scale, policy_seed=seed)) for scale in (0.0, 1.0)
            )
            means = [
                float(action_log_likelihood(policy.as_learner(), policy.weights_of(seed), samples).mean())
                for samples in (plain, steered)
            ]
        assert means[1] > means[0] + 0.05


def test_bad_flags_are_one_line(run, capsys, tmp_path):
    def refusal(*args) -> str:
        with pytest.raises(SystemExit) as ended:
            command(*args)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    new = ("--output", tmp_path / "new.npz")
    assert "--num is 0" in refusal(run, *new, "--num", 0)
    assert "--guidance is nan" in refusal(run, *new, "--guidance", "nan")
    assert "--policy-seed needs" in refusal(run, *new, "--policy-seed", 1)
    assert "the run has the seeds (0, 1)" in refusal(run, *new, "--guidance", 1, "--policy-seed", 7)
    assert "exists" in refusal(run, "--output", run / "prior.npz")
    assert "has no prior.npz: runs with --augmentation none" in refusal(tmp_path, *new)
    assert "there is no file" in refusal(tmp_path / "nowhere", *new)


def test_every_program_lowers_for_accelerators(run, tmp_path, monkeypatch):
    with recorded_programs(monkeypatch) as found:
        command(run, "--guidance", 0.6, "--num", 4, "--output", tmp_path / "some.npz")
    lower_for_accelerators(found)
