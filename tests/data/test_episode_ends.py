"""Faulty ends of episodes in vaults are repaired, by an environment without physics whose true ends are known."""

import dataclasses

import jax
import numpy as np
import pytest

from coda_jax.data import conventions, episode_ends
from coda_jax.data.conventions import Convention, read_in_convention, recognise
from coda_jax.data.episode_ends import check_ends, one_step
from coda_jax.data.vault_files import VaultError, open_vault
from coda_jax.envs import mamujoco
from tests.drift import FALLING_DRIFT, SPEC, falling_episodes
from tests.vaults import joint_experience, recorded_ant, write_with_flashbax

LIMITS = falling_episodes("lllll")
MIXED = falling_episodes("ffflfffflff")


@pytest.fixture
def convention_of(tmp_path):
    """Writes episodes with the given flags, and recognises the vault."""

    def write(episodes, terminals=(), truncations=(), env=FALLING_DRIFT) -> Convention:
        write_with_flashbax(tmp_path / "v", joint_experience(episodes, terminals, truncations), len(episodes.reward))
        return recognise(open_vault(tmp_path / "v"), {SPEC.name: env})

    return write


def assert_right(convention: Convention, episodes) -> None:
    np.testing.assert_array_equal(np.flatnonzero(convention.ends.terminal), np.flatnonzero(episodes.terminal))
    np.testing.assert_array_equal(np.flatnonzero(convention.ends.truncation), np.flatnonzero(episodes.truncation))


def ends_of(episodes) -> tuple[np.ndarray, np.ndarray]:
    return np.flatnonzero(episodes.terminal), np.flatnonzero(episodes.truncation)


def test_right_flags_are_kept(convention_of, tmp_path):
    convention = convention_of(MIXED, *ends_of(MIXED))
    assert_right(convention, MIXED)
    assert convention.ends.repairs == ()
    read = read_in_convention(open_vault(tmp_path / "v"), convention)
    jax.tree.map(np.testing.assert_array_equal, read, MIXED)


def test_missing_time_limits_are_added(convention_of):
    """Time-limit flags on 2 of 5 ends, so that episodes seem to have 80 and 120 steps of 40."""
    convention = convention_of(LIMITS, truncations=[79, 199])
    assert_right(convention, LIMITS)
    assert convention.ends.repairs == ("3 ends without a flag added, the first in episode 0 at step 39",)


@pytest.mark.parametrize("kept", [0, 3])
def test_missing_falls_are_added_though_no_episode_is_too_long(convention_of, kept):
    terminal, _ = ends_of(short := falling_episodes("fffff"))
    convention = convention_of(short, terminals=terminal[:kept])
    assert_right(convention, short)
    # The end of the recording needs no flag to be an end; the simulator tells that it is a fall.
    assert convention.ends.repairs[0].startswith(f"{len(terminal) - kept - 1} ends without a flag added")


@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
@pytest.mark.parametrize("episodes", [LIMITS, MIXED])
def test_early_and_late_flags_are_moved(convention_of, episodes, shift):
    terminal, truncation = (at + shift for at in ends_of(episodes))
    convention = convention_of(episodes, *(at[at < len(episodes.reward)] for at in (terminal, truncation)))
    assert_right(convention, episodes)
    assert "ends without a flag added" in convention.ends.repairs[0]
    assert "flags that are not ends removed" in convention.ends.repairs[1]


def test_every_end_is_asked_whether_it_is_a_fall(convention_of):
    """Nine falls and two time limits, all with both flags."""
    terminal, truncation = ends_of(MIXED)
    ends = np.sort(np.concatenate([terminal, truncation]))
    assert len(terminal) == 9 and len(truncation) == 2
    assert_right(convention_of(MIXED, ends, ends), MIXED)


@pytest.mark.parametrize("flags", ["all terminals", "all truncations", "swapped"])
def test_wrong_kinds_of_ends_are_repaired(convention_of, flags):
    terminal, truncation = ends_of(MIXED)
    ends = np.sort(np.concatenate([terminal, truncation]))
    stored = {"all terminals": (ends, ()), "all truncations": ((), ends), "swapped": (truncation, terminal)}[flags]
    convention = convention_of(MIXED, *stored)
    assert_right(convention, MIXED)
    words = " ".join(convention.ends.repairs)
    assert ("2 terminals turned into truncations" in words) == (flags != "all truncations")
    assert ("9 truncations turned into terminals" in words) == (flags != "all terminals")


def test_flags_are_kept_where_rounding_decides_the_fall(convention_of):
    """The simulator falls a little above the recorded fall: rounding at most, so the flags stand."""
    _, truncation = ends_of(MIXED)
    at = np.flatnonzero(MIXED.terminal)
    after = MIXED.state[at, 0] + 0.1 * MIXED.action[at, 0, 0]
    fall = float(after.min()) + 1e-6  # the lowest fall just misses

    def step(state, action):
        stepped = FALLING_DRIFT.step(state, action)
        return dataclasses.replace(stepped, terminal=stepped.state[0] > fall)

    convention = convention_of(MIXED, at, truncation, env=FALLING_DRIFT._replace(step=step))
    assert_right(convention, MIXED)


def test_artificial_cuts_are_joined_up_to_the_time_limit(convention_of):
    """The recording goes on after each cut in the middle of an episode."""
    convention = convention_of(LIMITS, truncations=range(19, 200, 20))
    assert_right(convention, LIMITS)
    assert convention.ends.repairs == ("5 flags that are not ends removed, the first in episode 0 at step 19",)


def test_artificial_cuts_stay_where_joined_episodes_would_be_too_long(convention_of):
    short = FALLING_DRIFT._replace(spec=dataclasses.replace(FALLING_DRIFT.spec, episode_length=20))
    convention = convention_of(LIMITS, truncations=range(19, 200, 20), env=short)
    assert np.flatnonzero(convention.ends.truncation).tolist() == list(range(19, 200, 20))


def test_lost_steps_cut_the_episode(convention_of):
    kept = np.delete(np.arange(200), np.arange(45, 65))
    cut = jax.tree.map(lambda leaf: leaf[kept], LIMITS)
    convention = convention_of(cut, truncations=np.flatnonzero(cut.truncation))
    assert np.flatnonzero(convention.ends.truncation).tolist() == [39, 44, 59, 99, 139, 179]


@pytest.mark.parametrize("num_drawn", [60, 4096])
def test_short_gaps_cut_the_episode(convention_of, monkeypatch, num_drawn):
    """Four steps lost in each episode: changes too small to be suspected; 60 of 180 steps find one, and then all."""
    monkeypatch.setattr(episode_ends, "NUM_DRAWN", num_drawn)
    kept = np.setdiff1d(np.arange(200), np.arange(200).reshape(5, 40)[:, 15:19])
    cut = jax.tree.map(lambda leaf: leaf[kept], LIMITS)
    monkeypatch.setattr(episode_ends, "_LARGE_CHANGE", 1e6)
    convention = convention_of(cut, truncations=np.flatnonzero(cut.truncation))
    gaps = np.arange(0, 180, 36) + 14
    assert np.flatnonzero(convention.ends.truncation).tolist() == sorted([*gaps, *np.arange(35, 180, 36)])
    assert convention.ends.repairs == ("5 ends without a flag added, the first in episode 0 at step 14",)


def test_an_episode_longer_than_the_limit_is_refused_in_one_line(convention_of):
    """No step of it is a reset."""
    short = FALLING_DRIFT._replace(spec=dataclasses.replace(FALLING_DRIFT.spec, episode_length=30))
    with pytest.raises(VaultError, match=r"episode 0, from step 0 to 39, has 40 steps, more than the 30") as caught:
        convention_of(LIMITS, truncations=np.flatnonzero(LIMITS.truncation), env=short)
    assert "\n" not in str(caught.value)


def test_resets_that_do_not_look_like_starts_are_found_in_long_episodes(convention_of):
    """Starts elsewhere than the task's, near where the episode before ended, are found by simulating all steps."""
    displaced = jax.tree.map(np.copy, LIMITS)
    displaced.state[:] += np.repeat([0.0, 0.9, 1.8, 2.7, 3.6], 40)[:, None].astype(np.float32)
    displaced.state[:, 0] -= 10.0  # far from a fall
    displaced.obs[:] = displaced.state[..., None]
    convention = convention_of(displaced, truncations=[199])
    assert_right(convention, LIMITS)


@pytest.mark.slow  # compiles Ant in MJX
def test_falls_and_time_limits_of_ant_are_told_apart(tmp_path):
    """Seven falls and two time limits, recorded in C; both flags at all ends, or no flags but the last."""
    episodes = recorded_ant(num_falls=7, num_limits=2, episode_length=80)
    env = mamujoco.make("4ant")
    env = env._replace(spec=dataclasses.replace(env.spec, episode_length=80))
    two_steps = conventions._make_simulate(env)

    def simulate(state, action):
        simulated = two_steps(state, action, action)
        return simulated.next_state, simulated.terminal

    ends = episodes.bounds[1:] - 1
    for name, flags in {"both": (ends, ends), "few": ((), ends[-1:]), "late": (ends[:-1] + 1, ())}.items():
        write_with_flashbax(tmp_path / name, joint_experience(episodes, *flags), len(episodes.reward))
        opened = open_vault(tmp_path / name)
        checked = check_ends(
            opened, episodes.state, episodes.action, env, one_step(simulate, conventions.NUM_SIMULATED)
        )
        np.testing.assert_array_equal(checked.terminal, episodes.terminal != 0)
        np.testing.assert_array_equal(checked.truncation, episodes.truncation != 0)
    assert episodes.terminal.sum() == 7 and episodes.truncation.sum() == 2
