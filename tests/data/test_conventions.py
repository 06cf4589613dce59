"""Vaults of both versions of OG-MARL's MaMuJoCo are recognised by simulating steps, and converted consistently."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coda_jax.data import conventions
from coda_jax.data.conventions import read_in_convention, recognise, to_task
from coda_jax.data.vault_files import VaultError, open_vault
from coda_jax.envs import mamujoco
from tests.drift import DRIFT, SPEC, drift_episodes
from tests.vaults import OLD_OBS, TODAYS_OBS, experience_of, joint_experience, recorded_cheetah, write_with_flashbax

pytestmark = pytest.mark.slow  # compiles five programs of MJX
LENGTHS = (60, 100, 100, 90)


@pytest.fixture(scope="module")
def steps():
    return recorded_cheetah(LENGTHS)


@pytest.fixture(scope="module")
def candidates():
    """The task in both conventions, with a time limit of 100 steps; one compiled program each."""
    envs = {name: mamujoco.make(name) for name in ("2halfcheetah", "2halfcheetah-ogmarl")}
    return {name: env._replace(spec=dataclasses.replace(env.spec, episode_length=100)) for name, env in envs.items()}


@pytest.fixture(scope="module", autouse=True)
def compile_once_per_environment():
    """Compiles the simulation of an environment once for all tests of this file."""
    compiled = {}
    with pytest.MonkeyPatch.context() as patch:
        make_simulate = conventions._make_simulate
        patch.setattr(
            conventions,
            "_make_simulate",
            lambda env: (
                make_simulate(env) if env.spec == SPEC else compiled.setdefault(env.spec.name, make_simulate(env))
            ),
        )
        yield


def stored(tmp_path, experience):
    write_with_flashbax(tmp_path / "task.vlt" / "Good", experience, experience["infos"]["state"].shape[1])
    return open_vault(tmp_path / "task.vlt")


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("which", ["today's", "old"])
def test_both_conventions_are_recognised_and_read(tmp_path, steps, candidates, which, is_reversed):
    name, obs_index, ends = {
        "today's": ("2halfcheetah", TODAYS_OBS, "truncations"),
        "old": ("2halfcheetah-ogmarl", OLD_OBS, "terminals"),
    }[which]
    opened = stored(tmp_path, experience_of(steps, obs_index, is_reversed, ends))
    convention = recognise(opened, candidates)
    assert convention.task == name and convention.error < 1e-2
    episodes = read_in_convention(opened, convention)
    np.testing.assert_array_equal(np.diff(episodes.bounds), LENGTHS)
    np.testing.assert_array_equal(np.flatnonzero(episodes.truncation), np.cumsum(LENGTHS) - 1)
    assert not episodes.terminal.any()  # HalfCheetah never terminates
    np.testing.assert_array_equal(episodes.state, steps["state"])

    # Simulated steps agree with the recorded ones; the environment reverses the actions if they were stored reversed.
    at = np.resize(np.flatnonzero(~steps["is_end"]), conventions.NUM_SIMULATED)
    action = jnp.asarray(episodes.action)
    simulated = convention.simulate(jnp.asarray(episodes.state[at]), action[at], action[at + 1])
    error = np.abs(simulated.next_state - episodes.state[at + 1]).max(axis=1)
    assert np.quantile(error, 0.9) < 1e-2
    displacement = steps["x"][at + 1] - steps["x"][at]
    expected = np.concatenate([steps["state"][at + 1], displacement[:, None]], axis=1)[:, obs_index]
    assert np.quantile(np.abs(simulated.next_obs - expected).max(axis=(1, 2)), 0.9) < 1e-2
    returning_actions = {task: env._replace(step=lambda state, action: action) for task, env in candidates.items()}
    taken = recognise(opened, returning_actions).env.step(None, episodes.action)
    np.testing.assert_array_equal(taken, episodes.action[..., :: -1 if convention.is_reversed else 1])
    if which == "today's":
        assert convention.is_reversed == is_reversed


@pytest.mark.parametrize("layout", ["with x in front", "all observations"])
def test_the_state_is_found_in_the_layouts_of_old_recordings(tmp_path, steps, candidates, layout):
    experience = experience_of(steps, OLD_OBS, True, "terminals")
    if layout == "with x in front":
        state = np.concatenate([steps["x"][:, None], steps["state"]], axis=1)
    else:
        state = experience["observations"][0].reshape(-1, 26)
    opened = stored(tmp_path, experience | {"infos": {"state": state[None]}})
    convention = recognise(opened, candidates)
    np.testing.assert_array_equal(read_in_convention(opened, convention).state, steps["state"])


def fault(opened, candidates) -> str:
    with pytest.raises(VaultError) as caught:
        recognise(opened, candidates)
    message = str(caught.value)
    assert "\n" not in message and str(opened.path) in message
    assert "gymnasium_mamujoco (2halfcheetah)" in message and "OG-MARL's mamujoco (2halfcheetah-ogmarl)" in message
    return message


def test_other_recordings_are_refused_naming_both_conventions(tmp_path, steps, candidates):
    swapped = steps | {"torque": steps["torque"][:, [3, 4, 5, 0, 1, 2]]}
    message = fault(stored(tmp_path / "a", experience_of(swapped, TODAYS_OBS, False, "truncations")), candidates)
    assert "s_{t+1} by" in message and "has A=2, O=13, U=3, the vault A=2, O=12, U=3" in message
    doubled_reward = steps | {"reward": 2 * steps["reward"]}
    message = fault(stored(tmp_path / "b", experience_of(doubled_reward, OLD_OBS, True, "terminals")), candidates)
    assert "r_{t+1} by" in message
    # Observations of one convention, truncated to the size of the other.
    cut = stored(tmp_path / "c", experience_of(steps, OLD_OBS[:, :12], True, "terminals"))
    assert "the change of o_t by" in fault(cut, candidates)
    # Entries of the observations in another order.
    reordered = stored(tmp_path / "d", experience_of(steps, OLD_OBS[:, ::-1], True, "terminals"))
    assert "the change of o_t by" in fault(reordered, candidates)


def test_nans_are_refused(tmp_path, steps, candidates):
    broken = steps | {"state": np.full_like(steps["state"], np.nan)}
    opened = stored(tmp_path, experience_of(broken, TODAYS_OBS, False, "truncations"))
    with pytest.raises(VaultError, match=r"observations\[0, 0, 0, 0\] is NaN; remove that episode"):
        recognise(opened, candidates)


def test_an_unknown_state_layout_is_refused(tmp_path, steps, candidates):
    short = experience_of(steps, OLD_OBS, True, "terminals", state=steps["state"][:, :11])
    assert "infos.state of 11 has no known layout" in fault(stored(tmp_path, short), candidates)


def test_episodes_of_single_steps_cannot_be_simulated(tmp_path, steps, candidates):
    single = steps | {"is_end": np.ones_like(steps["is_end"])}
    opened = stored(tmp_path, experience_of(single, TODAYS_OBS, False, "truncations"))
    with pytest.raises(VaultError, match="no step is followed by another"):
        recognise(opened, candidates)


@pytest.mark.parametrize("is_reversed", [False, True])
def test_the_old_convention_is_converted(tmp_path, steps, candidates, is_reversed):
    opened = stored(tmp_path, experience_of(steps, OLD_OBS, is_reversed, "terminals"))
    convention = recognise(opened, candidates)
    episodes = to_task(read_in_convention(opened, convention), convention, "2halfcheetah", candidates["2halfcheetah"])
    np.testing.assert_array_equal(episodes.obs, steps["state"][:, TODAYS_OBS])
    np.testing.assert_array_equal(episodes.action, steps["torque"].reshape(-1, 2, 3))
    np.testing.assert_array_equal(episodes.state, steps["state"])


@pytest.mark.parametrize("ends", [[1, 3], [0, 1, 2, 3]])
def test_missing_time_limits_of_a_moving_robot_are_found(tmp_path, candidates, ends):
    """HalfCheetah in C, by random torques and episodes of 100 steps, whose flags are kept on few ends or are late."""
    steps = recorded_cheetah([100] * 4, seed=7)
    flags = np.zeros(400, bool)
    late = len(ends) == 4
    flags[[100 * number + 99 + late for number in ends if number < 3 or not late]] = True
    opened = stored(tmp_path, experience_of(steps | {"is_end": flags}, TODAYS_OBS, False, "truncations"))
    convention = recognise(opened, candidates)
    assert np.flatnonzero(convention.ends.truncation).tolist() == [99, 199, 299, 399]
    assert convention.ends.repairs[0].split(",")[0] == f"{3 if late else 2} ends without a flag added"


def test_time_limits_of_the_old_convention_are_no_terminals(tmp_path):
    """Episodes of 5, 3, 5, 2 steps end at 4, 7, 12, 14; the environment never terminates, its time limit is 5 steps."""
    whole = drift_episodes(4)
    lengths = (5, 3, 5, 2)
    kept = np.concatenate([5 * number + np.arange(length) for number, length in enumerate(lengths)])
    part = jax.tree.map(lambda leaf: leaf[kept], whole)
    opened = stored(tmp_path, joint_experience(part, terminals=np.cumsum(lengths) - 1))
    episodes = read_in_convention(opened, recognise(opened, {SPEC.name: DRIFT}))
    assert not episodes.terminal.any()
    assert np.flatnonzero(episodes.truncation).tolist() == [4, 7, 12, 14]
