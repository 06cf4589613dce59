"""Vaults of HalfCheetah in both conventions of OG-MARL, and episodes of Ant.

Steps are simulated by MuJoCo in C, files are written by flashbax.
"""

import contextlib
import io

import gymnasium
import jax.numpy as jnp
import numpy as np
from flashbax.buffers.trajectory_buffer import TrajectoryBufferState
from flashbax.vault import Vault

from coda_jax.data.dataset import Episodes, episodes_from_arrays

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


def recorded_ant(num_falls: int, num_limits: int, episode_length: int) -> Episodes:
    """Episodes of `4ant` by random torques in C, in random order; observations and rewards are zero."""
    env = gymnasium.make("Ant-v5").unwrapped
    rng, wanted = np.random.default_rng(0), {True: num_falls, False: num_limits}
    fields = {name: [] for name in ("state", "action", "terminal", "truncation")}
    seed = 0
    while any(wanted.values()):
        env.reset(seed=seed)
        seed, states, actions, fell = seed + 1, [], [], False
        while not fell and len(states) < episode_length:
            states.append([*env.data.qpos[2:], *env.data.qvel])
            actions.append(rng.uniform(-1, 1, 8))
            fell = env.step(actions[-1].astype(np.float32))[2]
        if wanted[fell]:
            wanted[fell] -= 1
            fields["state"] += states
            fields["action"] += actions
            fields["terminal"] += [False] * (len(states) - 1) + [fell]
            fields["truncation"] += [False] * (len(states) - 1) + [not fell]
    env.close()
    arrays = {name: np.array(values, np.float32) for name, values in fields.items()}
    of_agents = [[2, 3], [4, 5], [6, 7], [0, 1]]  # hips and ankles of the legs 1 to 4; C begins with leg 4
    num_steps = len(arrays["state"])
    action = arrays.pop("action")[:, of_agents]
    return episodes_from_arrays(obs=np.zeros((num_steps, 4, 1)), action=action, reward=np.zeros(num_steps), **arrays)


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
