"""Which environment a vault was recorded in: guessed from its sizes, proved by replaying its steps.

OG-MARL has two MaMuJoCos. `gymnasium_mamujoco` is today's: tasks such as `2halfcheetah`. `mamujoco` is the old wrapper
around gym's robots: other observations, and time limits stored as terminals; its tasks are called `2halfcheetah-ogmarl`
here. In either, versions differ in the order of an agent's actions. So some recorded (s_t, a_t) are put into MJX, which
steps on, and states, rewards and the change of the observations must come out as they were recorded.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from coda_jax.data.dataset import Episodes
from coda_jax.data.vault import StateSource, read_episodes
from coda_jax.data.vault_files import OpenVault, VaultError, open_vault
from coda_jax.envs import mamujoco
from coda_jax.envs.base import Environment, EnvState
from coda_jax.envs.tasks import TASKS

OLD_WRAPPER = "-ogmarl"
"""What the names of tasks in the convention of OG-MARL's `mamujoco` end with."""

TOLERANCE = 0.1
"""By how much half of the replayed steps may miss, in standard deviations of the compared feature.

A wrong convention misses by one or more, the right one by rounding; but contacts amplify rounding, and of a stumbling
Ant's steps a fifth miss by more than this in single precision.
"""

REPLAYED = 128
"""Steps that are replayed."""
_BLOCKS = 16
"""Places of the vault that they come from: few, as each costs the decoding of a stored chunk."""


class Replayed(NamedTuple):
    """What became of N robots that were placed and stepped twice."""

    obs: Float[Array, "N A O"]
    """Before the first step."""
    next_obs: Float[Array, "N A O"]
    """After the first step, as are the next two."""
    next_state: Float[Array, "N S"]
    terminal: Bool[Array, "N"]
    next_reward: Float[Array, "N"]
    """Of the second step: Ant's pays the way from where the torso was a substep before a step, which no state tells."""


Replay = Callable[[Float[Array, "N S"], Float[Array, "N A U"], Float[Array, "N A U"]], Replayed]
"""Places robots in states and steps each twice, by one action each."""


class Convention(NamedTuple):
    """How a vault is to be understood; made by `recognise`."""

    task: str
    """Name of the task."""
    env: Environment
    """Has the vault's observations, and takes actions in the vault's order."""
    is_reversed: bool
    """Whether each agent's actions stand in the reverse of the task's order; `env` takes care of it."""
    state: StateSource
    error: float
    """By how much the replayed steps miss in the median; see `TOLERANCE`."""
    description: str
    """What was recognised, in words."""
    replay: Replay


class _Steps(NamedTuple):
    """Recorded steps, each with its successor; leaves are `[N, ...]`."""

    leaves: dict[str, np.ndarray]
    following: dict[str, np.ndarray]


def origin(task: str) -> str:
    """The MaMuJoCo of OG-MARL that a task is from, in words."""
    return f"OG-MARL's mamujoco ({task})" if task.endswith(OLD_WRAPPER) else f"gymnasium_mamujoco ({task})"


def recognise(opened: OpenVault, candidates: Mapping[str, Environment]) -> Convention:
    """Finds the candidate that the vault's steps were recorded in.

    Args:
        opened: the vault.
        candidates: environments by the names of their tasks; the first that fits is taken.

    Raises:
        VaultError: none fits; the message says for each candidate why not.
    """
    steps = _recorded_steps(opened)
    misfits = []
    for task, env in candidates.items():
        found = _recognise_one(opened, task, env, steps)
        if isinstance(found, Convention):
            return found
        misfits.append(f"{origin(task)} {found}")
    raise VaultError(
        f"vault {opened.path} fits no convention it is asked to: {'; '.join(misfits)}; choose another --task or vault"
    )


def _recognise_one(opened: OpenVault, task: str, env: Environment, steps: _Steps) -> Convention | str:
    """The convention if it fits, else why not."""
    spec, sizes = env.spec, opened.sizes
    needed = {"A": spec.num_agents, "O": spec.obs_dim, "U": spec.action_dim}
    if any(sizes[letter] != size for letter, size in needed.items()):
        has, needs = (", ".join(f"{name}={of[name]}" for name in needed) for of in (sizes, needed))
        return f"has {needs}, the vault {has}"
    sources = _state_sources(sizes, env)
    if not sources:
        return f"has a state of {spec.state_dim} numbers, the vault's infos.state of {sizes['S']} has no known layout"
    replay = _replay(env)
    misses = {}
    for state in sources:
        for is_reversed in (False, True):
            errors = _errors(replay, steps, state, is_reversed)
            worst = float(np.max(list(errors.values())))  # NaN if any is
            misses[worst] = errors
            if worst <= TOLERANCE:
                order = ", each agent's actions in reverse" if is_reversed else ""
                layout = "" if state.leaf == "infos.state" else ", its state taken from the observations"
                return Convention(
                    task=task,
                    env=env._replace(step=lambda now, action: env.step(now, action[..., ::-1])) if is_reversed else env,
                    is_reversed=is_reversed,
                    state=state,
                    error=worst,
                    description=origin(task) + order + layout,
                    replay=(lambda s, a, b: replay(s, a[..., ::-1], b[..., ::-1])) if is_reversed else replay,
                )
    closest = misses[min(misses, key=lambda error: (np.isnan(error), error))]
    missed = ", ".join(f"{name} by {error:.2g}" for name, error in closest.items())
    return f"replayed in MJX misses {missed} standard deviations, {TOLERANCE} allowed"


def _replay(env: Environment) -> Replay:
    def step(now: EnvState, action: Array) -> tuple[EnvState, tuple[Array, ...]]:
        stepped = env.step(now, action)
        return stepped, (stepped.obs, stepped.state, stepped.terminal, stepped.reward)

    def place_and_step(state: Array, action: Array, next_action: Array) -> Replayed:
        placed = env.set_state(state)
        _, (obs, states, terminal, reward) = jax.lax.scan(step, placed, jnp.stack([action, next_action]))
        return Replayed(placed.obs, obs[0], states[0], terminal[0], reward[1])

    return jax.jit(jax.vmap(place_and_step))


def _state_sources(sizes: Mapping[str, int], env: Environment) -> list[StateSource]:
    """Where the environment's state may stand, judged by sizes alone."""
    state_dim = env.spec.state_dim
    if sizes["S"] == state_dim:
        return [StateSource("infos.state", np.arange(state_dim))]
    if sizes["S"] - state_dim in (1, 2):  # with the robot's place in front
        return [StateSource("infos.state", np.arange(sizes["S"] - state_dim, sizes["S"]))]
    if sizes["S"] == sizes["A"] * sizes["O"]:
        # A state of 1, 2, ..., S shows which entry of the state each entry of the observations is.
        obs_of_state = np.asarray(
            jax.jit(lambda state: env.set_state(state).obs)(jnp.arange(1.0, state_dim + 1))
        ).reshape(-1)
        columns = [np.flatnonzero(obs_of_state == entry + 1) for entry in range(state_dim)]
        if len(obs_of_state) == sizes["S"] and all(len(column) for column in columns):
            return [StateSource("observations", np.array([column[0] for column in columns]))]
    return []


def _recorded_steps(opened: OpenVault) -> _Steps:
    """Steps from all over the vault that are followed by another of the same episode."""
    terminal, truncation = opened.ends()
    is_end = terminal | truncation
    length = min(REPLAYED // _BLOCKS, opened.length - 1)
    starts = np.unique(np.linspace(0, opened.length - 1 - length, _BLOCKS).astype(int)).tolist()
    names = ("observations", "actions", "rewards", "infos.state")
    leaves = {name: [] for name in names}
    following = {name: [] for name in names}
    for start in starts:
        goes_on = ~is_end[start : start + length]
        for name in names:
            values = opened.read(name, start, start + length + 1).astype(np.float32)
            leaves[name].append(values[:-1][goes_on])
            following[name].append(values[1:][goes_on])
    found = sum(map(len, leaves["rewards"]))
    if found == 0:
        raise VaultError(f"vault {opened.path}: no step is followed by another of its episode, so none can be replayed")
    index = np.resize(np.arange(found), REPLAYED)  # one compiled shape for all vaults
    joined = [{name: np.concatenate(parts)[index] for name, parts in of.items()} for of in (leaves, following)]
    return _Steps(*joined)


def _taken(leaves: Mapping[str, np.ndarray], state: StateSource) -> np.ndarray:
    leaf = leaves[state.leaf]
    return leaf.reshape(len(leaf), -1)[:, state.columns]


def _errors(replay: Replay, steps: _Steps, state: StateSource, is_reversed: bool) -> dict[str, float]:
    """How far the replay is from the record: state, reward and observations, in standard deviations of the record.

    Observations are compared by their change, as where the robot stands in the world is not known to the state.
    """
    now, following = steps.leaves, steps.following
    before, after = _taken(now, state), _taken(following, state)
    turn = slice(None, None, -1 if is_reversed else 1)
    action, next_action = (jnp.asarray(leaves["actions"][..., turn]) for leaves in (now, following))
    replayed = jax.device_get(replay(jnp.asarray(before), action, next_action))
    reward, seen = following["rewards"][:, 0], following["observations"] - now["observations"]
    return {
        "s_{t+1}": _miss(replayed.next_state, after, after - before),
        "r_{t+1}": _miss(replayed.next_reward, reward, reward),
        "the change of o_t": _miss(replayed.next_obs - replayed.obs, seen, seen),
    }


def _miss(replayed: np.ndarray, recorded: np.ndarray, spread: np.ndarray) -> float:
    """The median over steps of the largest difference of a feature, in standard deviations of its `spread`."""
    scaled = np.abs(replayed - recorded) / (np.std(spread, axis=0) + 1e-3)
    return float(np.median(scaled.reshape(len(scaled), -1).max(axis=1)))


def read_in_convention(opened: OpenVault, convention: Convention, max_transitions: int | None = None) -> Episodes:
    """Reads a recognised vault, or a part (see `read_episodes`); ends are true ends or time limits as in the task.

    Raises:
        VaultError: its values cannot be used.
    """
    return _settle_ends(read_episodes(opened, max_transitions, convention.state), convention)


def _settle_ends(episodes: Episodes, convention: Convention) -> Episodes:
    """Turns terminals that are time limits into truncations.

    They are those at the time limit with no truncation beside them; and, if the environment goes on after most of the
    others, all.
    """
    spec = convention.env.spec
    at = np.flatnonzero(episodes.terminal)
    time = at + 1 - episodes.bounds[np.searchsorted(episodes.bounds, at, side="right") - 1]
    is_limit = (time == spec.episode_length) & (episodes.truncation[at] == 0)
    early = at[~is_limit]
    if len(early):
        asked = early[np.linspace(0, len(early) - 1, REPLAYED).astype(int)]
        action = jnp.asarray(episodes.action[asked])
        replayed = convention.replay(jnp.asarray(episodes.state[asked]), action, action)
        is_limit |= np.mean(replayed.terminal) < 0.5
    terminal, truncation = episodes.terminal.copy(), episodes.truncation.copy()
    terminal[at[is_limit]] = 0.0
    truncation[at[is_limit]] = 1.0
    return dataclasses.replace(episodes, terminal=terminal, truncation=truncation)


def to_task(episodes: Episodes, convention: Convention, task: str, env: Environment) -> Episodes:
    """Episodes in the observations and the order of actions of another task with the same robot and state.

    Args:
        episodes: in the vault's convention.
        convention: the vault's.
        task: name of the other task, for the message.
        env: the other task, as `make` builds it; its observations are functions of the state.

    Raises:
        VaultError: the steps, replayed in the other task, do not come out.
    """
    if convention.task == task and not convention.is_reversed:
        return episodes
    is_end = (episodes.terminal != 0) | (episodes.truncation != 0)
    goes_on = np.flatnonzero(~is_end)
    if env.spec.state_dim != episodes.state.shape[1] or env.spec.num_agents != episodes.action.shape[1]:
        raise VaultError(f"{convention.description} and {origin(task)} are not the same robot and agents")
    if len(goes_on) == 0:
        raise VaultError("no step is followed by another of its episode, so none can be replayed")
    at = goes_on[np.linspace(0, len(goes_on) - 1, REPLAYED).astype(int)]
    replay = _replay(env)
    misses = []
    for is_reversed in (False, True):
        action = episodes.action[..., ::-1] if is_reversed else episodes.action
        state, now, following = (jnp.asarray(leaf) for leaf in (episodes.state[at], action[at], action[at + 1]))
        replayed = jax.device_get(replay(state, now, following))
        change = episodes.state[at + 1] - episodes.state[at]
        misses.append(_miss(replayed.next_state, episodes.state[at + 1], change))
        if misses[-1] <= TOLERANCE:
            return dataclasses.replace(
                episodes, obs=_observations(env, episodes.state), action=np.ascontiguousarray(action)
            )
    raise VaultError(f"{convention.description}, replayed in {origin(task)}, misses s_{{t+1}} by {min(misses):.2g}")


def _observations(env: Environment, state: Float[np.ndarray, "T S"]) -> Float[np.ndarray, "T A O"]:
    """What the environment shows of each state, some thousand at a time."""
    observe = jax.jit(jax.vmap(lambda state: env.set_state(state).obs))
    size = 8192
    obs = np.empty((len(state), env.spec.num_agents, env.spec.obs_dim), np.float32)
    for start in range(0, len(state), size):
        part = state[start : start + size]
        obs_of_state = observe(jnp.asarray(np.pad(part, ((0, size - len(part)), (0, 0)))))
        obs[start : start + len(part)] = np.asarray(obs_of_state)[: len(part)]
    return obs


def load_vault(task: str, path: Path, max_transitions: int | None = None) -> tuple[Convention, Episodes]:
    """Reads a vault of a task, or a part of it, in the convention in which it was recorded.

    Args:
        task: a task, whose vaults may be of either convention; or one that ends with `-ogmarl`, of the old only.
        path: the vault: its `.vlt` folder, or the one inside.
        max_transitions: see `read_episodes`.

    Raises:
        VaultError: the vault cannot be used, fits neither convention, or fits the other one.

    Examples:
        >>> from pathlib import Path
        >>> cj.load_vault("2halfcheetah", Path("nowhere/Replay.vlt"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        coda_jax.data.vault_files.VaultError: ...nowhere/Replay.vlt...
    """
    opened = open_vault(path)
    robot = task.removesuffix(OLD_WRAPPER)
    names = [name for name in TASKS if name == robot or name.startswith(f"{robot}-")]
    convention = recognise(opened, {name: mamujoco.make(name) for name in names})
    if task != robot and convention.task != task:
        raise VaultError(f"vault {opened.path} is of {convention.description}, not of {origin(task)}; use task {robot}")
    return convention, read_in_convention(opened, convention, max_transitions)
