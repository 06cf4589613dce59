"""The command that compares the sources of consequences, at its smallest."""

import dataclasses
import json
import math
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.types import Trajectory
from experiments import consequences
from experiments.consequences import MODES, SCALES, SEARCH_STEPS, at_spread
from experiments.guidance import subjects
from experiments.guidance.subjects import Subject
from experiments.pipeline import consequences as pipeline_consequences
from experiments.pipeline.settings import ExperimentConfig
from experiments.tasks.settings import DEFAULTS
from tests.linear import DATASET, DYNAMICS, ENV, MODEL, POLICY, PRIOR, linear_model


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Same side with models of the smallest sizes."""
    task = DEFAULTS["same-side"]
    small = dataclasses.replace(
        task,
        num_episodes=20,
        diffusion=dataclasses.replace(task.diffusion, num_steps=2),
        denoiser=dataclasses.replace(
            task.denoiser, num_updates=2, batch_size=4, unet=dataclasses.replace(task.denoiser.unet, width=4)
        ),
        dynamics=dataclasses.replace(task.dynamics, widths=(8,), num_updates=2, batch_size=4),
        training=dataclasses.replace(task.training, updates_per_epoch=2, batch_size=4, evaluation_episodes=2),
    )
    monkeypatch.setitem(subjects.DEFAULTS, "same-side", small)
    monkeypatch.setattr(consequences, "enable_compilation_cache", lambda: None)
    monkeypatch.setenv("CODA_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "table"


@pytest.mark.slow
def test_every_mode_has_its_rows_and_is_resumed(tiny, monkeypatch, capsys):
    flags = shlex.split(f"--output {tiny} --task same-side --num-updates 2 --num-trajectories 8 --kept-of 4")
    with jax.debug_key_reuse(False):
        consequences.main(flags)
        rows = json.loads((tiny / "consequences.json").read_text())["rows"]
        assert set(rows) == {"real", *MODES}
        assert rows["real"]["all"]["response"] is None and rows["real"]["all"]["one_step_error"] < 1e-5
        for mode in MODES:
            assert set(rows[mode]) == {"all", "kept"}
            for row in rows[mode].values():
                assert all(math.isfinite(value) for value in row.values()), (mode, row)
        monkeypatch.setattr(consequences, "measure", None)  # nothing is left to measure
        consequences.main(flags)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        consequences.main([*flags, "--seed", "3"])
    assert ended.value.code == 2 and "other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_in_the_linear_world_the_modes_reduce_the_one_step_error(tmp_path, monkeypatch):
    """Its denoiser and its one-step model are ideal, and next states of guided actions are known."""
    monkeypatch.setattr(consequences, "enable_compilation_cache", lambda: None)
    for module in (consequences, pipeline_consequences):
        monkeypatch.setattr(module, "make_dynamics", lambda spec, config: MODEL)
    model = linear_model(SamplerConfig(num_steps=12, solver="dpm++"))
    subject = Subject(ExperimentConfig(), ENV, DATASET, DATASET, model, PRIOR, DYNAMICS, POLICY, ())
    monkeypatch.setattr(consequences, "subject_of", lambda config: subject)
    with jax.debug_key_reuse(False):
        consequences.main(["--output", str(tmp_path)])
    rows = json.loads((tmp_path / "consequences.json").read_text())["rows"]
    usual = rows["denoiser"]["all"]
    for mode, row in ((mode, rows[mode]["all"]) for mode in MODES):
        assert abs(row["spread"] - 0.2) < 0.05
        assert row["one_step_error"] <= usual["one_step_error"] + 1e-6, mode
        assert rows[mode]["kept"]["one_step_error"] < row["one_step_error"] + 1e-6
    assert rows["model"]["all"]["window_error"] < 1e-4
    np.testing.assert_allclose(rows["model"]["all"]["response"], 1.0, atol=1e-3)
    assert rows["score"]["all"]["one_step_error"] < 0.9 * usual["one_step_error"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--modes oracle", "--modes is 'oracle'; choose one of: denoiser"),
        ("--kept-of 5", "--kept-of is 5; it must divide the 64 trajectories"),
        ("--run nowhere", "nowhere is no finished run"),
    ],
)
def test_bad_flags_are_one_clear_line(tmp_path, capsys, monkeypatch, flags, words):
    monkeypatch.setattr(consequences, "enable_compilation_cache", lambda: None)
    with pytest.raises(SystemExit) as ended:
        consequences.main(["--output", str(tmp_path / "x"), *flags.split()])
    assert ended.value.code == 2 and words in " ".join(capsys.readouterr().err.split())


def test_the_guidance_scale_of_a_spread_is_found():
    """Of a sampler whose spread is 0.05 / lambda."""

    def sample(guidance: float) -> Trajectory:
        x = jnp.zeros((1, 2, 1))
        return Trajectory(
            state=x, obs=x[..., None], action=x[..., None] + guidance, reward=x[..., 0], terminal=x[..., 0]
        )

    measured = at_spread(sample, lambda trajectory: 0.05 / trajectory.action.max(), 0.2)
    num_scales, num_halvings = SEARCH_STEPS
    step = math.log(SCALES[1] / SCALES[0]) / (num_scales - 1) / 2**num_halvings
    assert 0.0 <= math.log(measured.guidance / 0.25) < 1.0001 * step
    assert measured.seconds >= 0
    np.testing.assert_allclose(measured.guided.action, measured.guidance, rtol=1e-6)
    assert not measured.unguided.action.any()
    # Guidance that overshoots from 0.1 on, with a least spread that is too large.
    measured = at_spread(sample, lambda trajectory: 0.3 + abs(trajectory.action.max() - 0.1), 0.2)
    assert 0.07 < measured.guidance < 0.14
