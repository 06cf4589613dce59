"""Synthetic trajectories as episodes, and as a vault that flashbax, hence OG-MARL, reads."""

import jax.numpy as jnp
import numpy as np
from flashbax.vault import Vault

from coda_jax.data.synthetic import episodes_from_windows
from coda_jax.data.vault import read_vault, write_vault
from coda_jax.types import Trajectory

N, H, A = 6, 4, 2


def trajectories():
    rng = np.random.default_rng(0)

    def some(*shape):
        return jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)

    terminal = np.zeros((N, H), np.float32)
    terminal[1, 2] = terminal[2, H - 1] = terminal[3, 0] = terminal[3, 2] = 1.0
    return Trajectory(
        state=some(N, H, 3),
        obs=some(N, H, A, 5),
        action=some(N, H, A, 2),
        reward=some(N, H),
        terminal=jnp.asarray(terminal),
    )


def test_each_trajectory_is_an_episode_up_to_its_first_end():
    steps = trajectories()
    episodes = episodes_from_windows(steps)
    assert np.diff(episodes.bounds).tolist() == [4, 3, 4, 1, 4, 4]
    last = episodes.bounds[1:] - 1
    assert episodes.terminal[last].tolist() == [0, 1, 1, 1, 0, 0]
    assert episodes.truncation[last].tolist() == [1, 0, 0, 0, 1, 1]
    assert episodes.terminal.sum() == 3 and episodes.truncation.sum() == 3
    np.testing.assert_array_equal(episodes.obs[4:7], steps.obs[1, :3])
    np.testing.assert_array_equal(episodes.reward[-H:], steps.reward[-1])


def test_a_vault_of_them_is_read_by_flashbax_and_here(tmp_path):
    episodes = episodes_from_windows(trajectories())
    write_vault(tmp_path / "synthetic.vlt" / "one", episodes)
    experience = Vault("synthetic.vlt", rel_dir=str(tmp_path), vault_uid="one").read().experience
    assert set(experience) == {"observations", "actions", "rewards", "terminals", "truncations", "infos"}
    np.testing.assert_array_equal(experience["actions"][0], episodes.action)
    np.testing.assert_array_equal(experience["rewards"][0], np.stack([episodes.reward] * A, axis=1))
    read = read_vault(tmp_path / "synthetic.vlt")
    assert read.bounds.tolist() == episodes.bounds.tolist()
    np.testing.assert_array_equal(read.state, episodes.state)
