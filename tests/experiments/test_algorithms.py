"""The choice of the learner on the commands."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from coda_jax.marl.input_scale import raw_inputs
from experiments import coordination
from experiments.host.cache import plain
from experiments.host.errors import UserError, parse_command
from experiments.host.run_folder import check_settings
from experiments.pipeline.learners import ALGORITHMS, LearnerSettings, make_learner
from experiments.pipeline.run import identity_of, run_dir_of
from experiments.pipeline.settings import OF_OLDER_RUNS, PRESETS, ExperimentConfig, check
from experiments.tasks.environments import make_task
from experiments.tasks.settings import METHODS, CoordinationConfig, methods_of
from experiments.tasks.settings import check as check_coordination
from experiments.tasks.training import Trained
from tests.drift import SPEC


def parsed(*flags: str) -> ExperimentConfig:
    return parse_command(ExperimentConfig, flags, presets=PRESETS)


def test_the_default_names_the_folders_that_it_named_before_there_was_a_choice():
    laptop = run_dir_of(parsed("--preset", "laptop")).name
    assert laptop == "2halfcheetah-replay-coda-g0.6-laptop-44136fa355b3"  # no difference: {}
    assert run_dir_of(parsed("--algorithm", "maddpg_bc")) == run_dir_of(parsed())
    assert len({run_dir_of(parsed("--algorithm", name)) for name in ALGORITHMS}) == 3


def test_a_folder_from_before_the_choice_still_belongs_to_the_same_command(tmp_path):
    identity = identity_of(parsed("--preset", "laptop", "--seed", "4"))
    older = {name: value for name, value in identity.items() if name != "algorithm"}
    learner = plain(PRESETS["laptop"].learner)
    kept = {"discount", "target_rate", "alpha_bc", "critic_learning_rate", "policy_learning_rate"}
    older["learner"] = {name: learner[name] for name in kept}
    (tmp_path / "config.yaml").write_text(json.dumps(older))
    defaults = identity_of(OF_OLDER_RUNS)
    check_settings(tmp_path, identity, defaults)
    with pytest.raises(UserError, match="algorithm is maddpg_bc there and iddpg_bc here"):
        check_settings(
            tmp_path, identity_of(parsed("--preset", "laptop", "--seed", "4", "--algorithm", "iddpg_bc")), defaults
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--algorithm qmix", "--algorithm is 'qmix'; choose one of: maddpg_bc, iddpg_bc, maddpg_cql"),
        (
            "--learner.cql-weight 1",
            "--learner.cql-weight is 1.0, but --algorithm maddpg_bc does not use it; maddpg_cql",
        ),
        ("--algorithm iddpg_bc --learner.actor-teammates current", "maddpg_bc and maddpg_cql do"),
        ("--algorithm maddpg_cql --learner.alpha-bc 1", "maddpg_bc and iddpg_bc do"),
    ],
)
def test_settings_that_an_algorithm_does_not_use_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        check(parsed(*flags.split()))
    with pytest.raises(UserError, match=message):
        check_coordination(parse_command(CoordinationConfig, flags.split()))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_preset_runs_every_algorithm(preset, algorithm):
    check(parsed("--preset", preset, "--algorithm", algorithm))


@pytest.mark.parametrize(
    ("algorithm", "critic_inputs"),
    [("maddpg_bc", "joint action"), ("iddpg_bc", "own action"), ("maddpg_cql", "joint action")],
)
def test_the_algorithm_makes_the_learner_with_its_settings(algorithm, critic_inputs):
    learner = make_learner(algorithm, LearnerSettings(critic_widths=(7,)), SPEC, raw_inputs(SPEC))
    state = learner.init(jax.random.key(0))
    (kernel,) = (leaf for leaf in jax.tree.leaves(state.critics) if leaf.ndim == 3 and leaf.shape[-1] == 7)
    actions = (
        SPEC.num_agents * SPEC.action_dim if critic_inputs == "joint action" else SPEC.num_agents + SPEC.action_dim
    )
    assert kernel.shape == (2, SPEC.state_dim + actions, 7)


def test_independent_critics_have_no_joint_action_actor():
    config = CoordinationConfig()
    assert methods_of(config) == METHODS
    independent = methods_of(dataclasses.replace(config, algorithm="iddpg_bc"))
    assert set(METHODS) - set(independent) == {"joint-action actor"}


def test_the_coordination_command_records_the_algorithm_and_shows_a_finished_run(tmp_path, monkeypatch):
    """With stand-ins for world and training."""
    trained = Trained(np.ones((2, 2)), np.zeros((2, 32, 2)))
    monkeypatch.setattr(coordination, "enable_compilation_cache", lambda: None)
    world = SimpleNamespace(dataset_return=1.0, task=make_task(CoordinationConfig().data, "scripted"))
    monkeypatch.setattr(coordination, "make_world", lambda config: world)
    monkeypatch.setattr(coordination, "train", lambda config, method, world, mesh: trained)
    flags = ["--algorithm", "iddpg_bc", "--num-seeds", "2", "--training.num-rounds", "1", "--run-dir", str(tmp_path)]
    for _ in range(2):
        coordination.main(flags)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["algorithm"] == "iddpg_bc"
    assert set(METHODS) - set(summary["returns_per_seed"]) == {"joint-action actor"}
