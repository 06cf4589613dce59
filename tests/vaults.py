"""Vaults of HalfCheetah in both conventions of OG-MARL: steps simulated by MuJoCo in C, files written by flashbax."""

import contextlib
import io

import gymnasium
import jax.numpy as jnp
import numpy as np
from flashbax.buffers.trajectory_buffer import TrajectoryBufferState
from flashbax.vault import Vault

TODAYS_OBS = np.array([[4, 13, 3, 12, 2, 11, 5, 0, 1, 8, 9, 10], [7, 16, 6, 15, 5, 14, 2, 0, 1, 8, 9, 10]])
"""Indices of gymnasium-robotics' observations into the state (qpos without x, then qvel)."""

OLD_OBS = np.array([[4, 13, 3, 12, 2, 11, 5, 8, 10, 9, 17, 1, 0], [7, 16, 6, 15, 5, 14, 2, 8, 10, 9, 17, 1, 0]])
"""The same for the old wrapper, whose globals are qvel, then qpos, of x, y and z; index 17 is x."""


def write_with_flashbax(folder, experience, length):
    """Writes a vault with flashbax, in two parts, as a running experiment does."""
    with contextlib.redirect_stdout(io.StringIO()):
        vault = Vault(folder.parent.name, experience, rel_dir=str(folder.parent.parent), vault_uid=folder.name)
    state = TrajectoryBufferState(experience=experience, current_index=jnp.asarray(length), is_full=jnp.asarray(False))
    for interval in ((0, length // 2), (length // 2, length)):
        if interval[0] < interval[1]:
            vault.write(state, interval)


def recorded_cheetah(lengths, seed: int = 0) -> dict[str, np.ndarray]:
    """Random torques in C: `state` [T, 17], `x` [T], `torque` [T, 6] by actuator, `reward` and `is_end` [T]."""
    env = gymnasium.make("HalfCheetah-v5").unwrapped
    rng = np.random.default_rng(seed)
    steps = {name: [] for name in ("state", "x", "torque", "reward", "is_end")}
    for number, length in enumerate(lengths):
        env.reset(seed=seed + number)
        for step in range(length):
            steps["state"].append(env._get_obs())
            steps["x"].append(env.data.qpos[0])
            torque = rng.uniform(-1, 1, 6).astype(np.float32)
            _, reward, *_ = env.step(torque)
            steps["torque"].append(torque)
            steps["reward"].append(reward)
            steps["is_end"].append(step == length - 1)
    env.close()
    return {name: np.array(values, bool if name == "is_end" else np.float32) for name, values in steps.items()}


def experience_of(steps, obs_index, is_reversed: bool, ends: str, state=None):
    """One recording in OG-MARL's layout.

    Args:
        steps: as returned by `recorded_cheetah`.
        obs_index: indices of the agents' observations into (state, x).
        is_reversed: whether an agent's actions are in reverse order.
        ends: the leaf with the ends of episodes.
        state: `infos.state`, `[T, S]`; the state by default.
    """
    action = steps["torque"].reshape(-1, 2, 3)
    features = np.concatenate([steps["state"], steps["x"][:, None]], axis=1)
    flags = {"terminals": np.zeros((len(action), 2), bool), "truncations": np.zeros((len(action), 2), bool)}
    flags[ends][:] = steps["is_end"][:, None]
    leaves = {
        "observations": features[:, obs_index],
        "actions": action[..., ::-1] if is_reversed else action,
        "rewards": np.repeat(steps["reward"][:, None], 2, axis=1),
        **flags,
    }
    state = steps["state"] if state is None else state
    return {**{name: leaf[None] for name, leaf in leaves.items()}, "infos": {"state": state[None]}}


def joint_experience(episodes, terminals=(), truncations=()):
    """Episodes of any task in OG-MARL's layout, with all agents' flags at the given steps and nowhere else."""
    flags = {name: np.zeros((1, *episodes.action.shape[:2]), bool) for name in ("terminals", "truncations")}
    flags["terminals"][:, list(terminals)] = True
    flags["truncations"][:, list(truncations)] = True
    num_agents = episodes.action.shape[1]
    return {
        "observations": episodes.obs[None],
        "actions": episodes.action[None],
        "rewards": np.repeat(episodes.reward[None, :, None], num_agents, axis=2),
        **flags,
        "infos": {"state": episodes.state[None]},
    }
