"""Large vaults: memory usage of reading, and parts of random whole episodes."""

import contextlib
import io
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flashbax.buffers.trajectory_buffer import TrajectoryBufferState
from flashbax.vault import Vault

from coda_jax.data.vault import VaultError, read_vault, write_vault
from tests.data.test_vault import assert_equal, og_marl_experience, random_episodes, read_error
from tests.vaults import write_with_flashbax

MEASURE = """if True:
    import sys
    from coda_jax.data.vault import read_vault

    def kilobytes(field):
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith(field))

    path, max_transitions = sys.argv[1], int(sys.argv[2]) or None
    read_vault(path, max_transitions=2_000)  # warm-up: imports and caches of the first use
    before = kilobytes("VmRSS")
    episodes = read_vault(path, max_transitions=max_transitions)
    used = sum(leaf.nbytes for leaf in vars(episodes).values()) / 1024
    print((kilobytes("VmHWM") - before) / used, used / 1024)
"""


def write_large_vault(folder, num_steps: int, obs_dim: int = 60, num_agents: int = 4):
    """A vault of episodes of 1,000 steps, written by flashbax in several parts."""
    block = 20_000
    step = np.arange(block, dtype=np.float32)[None, :, None, None]
    ends = np.broadcast_to((np.arange(block) % 1000 == 999)[None, :, None], (1, block, num_agents))
    experience = {
        "observations": np.broadcast_to(step % 7, (1, block, num_agents, obs_dim)),
        "actions": np.broadcast_to(step % 2, (1, block, num_agents, 2)),
        "rewards": np.broadcast_to(step[..., 0] % 3, (1, block, num_agents)),
        "terminals": np.zeros((1, block, num_agents), bool),
        "truncations": ends,
        "infos": {"state": np.broadcast_to(step[..., 0] % 11, (1, block, obs_dim))},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        vault = Vault(
            folder.parent.name,
            experience,
            rel_dir=str(folder.parent.parent),
            vault_uid=folder.name,
            compression={"id": "zlib", "level": 1},
        )
    state = TrajectoryBufferState(experience=experience, current_index=jnp.asarray(0), is_full=jnp.asarray(True))
    for _ in range(num_steps // block):
        vault.write(state, (0, block))


def memory_of_reading(path, max_transitions: int = 0) -> tuple[float, float]:
    """Peak memory of a reading process relative to the size of the episodes, and this size in megabytes."""
    command = [sys.executable, "-c", MEASURE, str(path), str(max_transitions)]
    ratio, used = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(ratio), float(used)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [60_000, 280_000])
def test_peak_memory_of_reading_is_below_twice_the_data(tmp_path, num_steps):
    write_large_vault(tmp_path / "large.vlt" / "one", num_steps)
    whole, megabytes = memory_of_reading(tmp_path / "large.vlt")
    assert megabytes > num_steps / 1000 and whole < 2
    half, _ = memory_of_reading(tmp_path / "large.vlt", num_steps // 2)
    assert half < 2


def test_a_part_is_random_whole_episodes(tmp_path):
    lengths = np.random.default_rng(0).integers(5, 30, 200)
    episodes = random_episodes(num_steps=int(lengths.sum()))
    number = np.repeat(np.arange(200), lengths)
    episodes.state[:, 0] = number
    episodes.terminal[:] = 0
    episodes.truncation[:] = np.append(np.diff(number) != 0, True)
    write_vault(tmp_path / "v", episodes)
    part = read_vault(tmp_path / "v", max_transitions=1_000)
    assert 900 < len(part.reward) <= 1_000
    chosen = np.unique(part.state[:, 0]).astype(int)
    np.testing.assert_array_equal(np.diff(part.bounds), lengths[chosen])
    steps = np.flatnonzero(np.isin(number, chosen))
    for name in ("state", "obs", "action", "reward", "truncation"):
        np.testing.assert_array_equal(getattr(part, name), getattr(episodes, name)[steps])
    assert_equal(read_vault(tmp_path / "v", max_transitions=1_000), part)
    assert_equal(read_vault(tmp_path / "v", max_transitions=10_000), episodes)


def test_a_part_holds_all_teams_that_alternate(tmp_path):
    """Of 400 episodes of four teams in turn, a quarter: every fourth would be of one team only."""
    episodes = random_episodes(num_steps=4_000)
    episodes.terminal[:] = 0
    episodes.truncation[:] = np.arange(4_000) % 10 == 9
    episodes.state[:, 0] = np.arange(4_000) // 10 % 4
    write_vault(tmp_path / "v", episodes)
    part = read_vault(tmp_path / "v", max_transitions=1_000)
    team, num_steps = np.unique(part.state[:, 0], return_counts=True)
    assert team.tolist() == [0, 1, 2, 3] and num_steps.sum() == 1_000
    # Hypergeometric, of standard deviation 3.8 episodes; four of them.
    assert np.abs(num_steps / 10 - 25).max() < 4 * 3.8


def test_a_part_smaller_than_an_episode_is_refused(tmp_path):
    write_with_flashbax(tmp_path / "v", og_marl_experience(), 10)
    with pytest.raises(VaultError, match=r"no 9 steps hold an episode, which has 10 here"):
        read_vault(tmp_path / "v", max_transitions=9)


def test_steps_outside_the_part_are_checked(tmp_path):
    experience = og_marl_experience(num_steps=40)
    experience["truncations"][0, 9::10] = True
    experience["observations"][0, 3] = np.nan
    write_with_flashbax(tmp_path / "v", experience, 40)
    with pytest.raises(VaultError, match=r"observations\[0, 3, 0, 0\] is NaN"):
        read_vault(tmp_path / "v", max_transitions=10)


def by_agent(leaf, names):
    return {name: leaf[:, :, number] for number, name in enumerate(names)}


def test_leaves_per_agent_read_like_joint_leaves(tmp_path):
    joint = og_marl_experience()
    agents = ["agent_0", "agent_1"]
    per_agent = {name: leaf if name == "infos" else by_agent(leaf, agents) for name, leaf in joint.items()}
    write_with_flashbax(tmp_path / "joint", joint, 10)
    write_with_flashbax(tmp_path / "per_agent", per_agent, 10)
    assert_equal(read_vault(tmp_path / "per_agent"), read_vault(tmp_path / "joint"))


def test_agents_are_ordered_by_number(tmp_path):
    observations = np.arange(11.0, dtype=np.float32)[None, None, :, None] * np.ones((1, 10, 11, 3), np.float32)
    experience = og_marl_experience(
        observations=by_agent(observations, [f"agent_{n}" for n in range(11)]),
        actions=np.zeros((1, 10, 11, 1), np.float32),
        **{name: np.zeros((1, 10, 11), np.float32) for name in ("rewards", "terminals", "truncations")},
    )
    write_with_flashbax(tmp_path / "v", experience, 10)
    np.testing.assert_array_equal(read_vault(tmp_path / "v").obs[0, :, 0], np.arange(11))


def test_agents_of_different_shapes_are_refused(tmp_path):
    experience = og_marl_experience()
    obs = experience["observations"]
    experience["observations"] = {"agent_0": obs[:, :, 0], "agent_1": obs[:, :, 1, :2]}
    write_with_flashbax(tmp_path / "v", experience, 10)
    assert "agents differ in their shapes" in read_error(tmp_path / "v")
