"""Recognises the environment of a vault: candidates by sizes, verified by simulating recorded steps.

OG-MARL has two versions of MaMuJoCo. `gymnasium_mamujoco` is the current one, with tasks such as `2halfcheetah`.
`mamujoco` is the old wrapper of gym's robots, with other observations and with time limits stored as terminals; its
tasks are named `2halfcheetah-ogmarl` here. In both, versions differ in the order of an agent's actions. Therefore MJX
simulates some recorded steps from (s_t, a_t), and the next states, rewards and changes of the observations must agree
with the recorded ones.
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
from coda_jax.data.episode_ends import Ends, check_ends, one_step
from coda_jax.data.vault import StateSource, read_episodes, read_states_and_actions
from coda_jax.data.vault_files import OpenVault, VaultError, check_values, open_vault
from coda_jax.envs import mamujoco
from coda_jax.envs.base import Environment, EnvState
from coda_jax.envs.tasks import TASKS

OLD_WRAPPER = "-ogmarl"
"""Suffix of the names of tasks in the convention of OG-MARL's `mamujoco`."""

TOLERANCE = 0.1
"""By how much half of the replayed steps may miss, in standard deviations of the compared feature.

A wrong convention has an error of one or more, the right one has rounding errors only. The bound is on the median
because contacts amplify rounding: of the steps of a stumbling Ant, a fifth have larger errors in single precision.
"""

NUM_SIMULATED = 128
"""Number of recorded steps that are simulated."""
_NUM_BLOCKS = 16
"""Number of blocks of consecutive steps that they come from; each costs the decoding of a stored chunk."""


class Simulated(NamedTuple):
    """Two simulated steps from each of N recorded states."""

    obs: Float[Array, "N A O"]
    """Observations before the first step."""
    next_obs: Float[Array, "N A O"]
    """Observations after the first step."""
    next_state: Float[Array, "N S"]
    """State after the first step."""
    terminal: Bool[Array, "N"]
    """Whether the first step ended the episode."""
    next_reward: Float[Array, "N"]
    """Reward of the second step. The first is not comparable: Ant's reward depends on the position of the torso one
    physics step before, which the state does not contain."""


Simulate = Callable[[Float[Array, "N S"], Float[Array, "N A U"], Float[Array, "N A U"]], Simulated]
"""Sets environments to states and steps each twice, by the first and the second action."""


class Convention(NamedTuple):
    """The convention of a vault; returned by `recognise`."""

    task: str
    """Name of the task."""
    env: Environment
    """Has the vault's observations, and takes actions in the vault's order."""
    is_reversed: bool
    """Whether each agent's actions are in reverse order; `env` already accounts for it."""
    state: StateSource
    """Location of the global state in the vault."""
    error: float
    """Median error of the simulated steps; see `TOLERANCE`."""
    description: str
    """The convention, in words."""
    simulate: Simulate
    """Simulates steps in the vault's order of actions."""
    ends: Ends
    """The ends of episodes, checked in the simulator and repaired."""


class _Steps(NamedTuple):
    """Recorded steps, each with its successor; leaves are `[N, ...]`."""

    current: dict[str, np.ndarray]
    following: dict[str, np.ndarray]


def convention_name(task: str) -> str:
    """The name of a task in its version of OG-MARL's MaMuJoCo, for messages."""
    return f"OG-MARL's mamujoco ({task})" if task.endswith(OLD_WRAPPER) else f"gymnasium_mamujoco ({task})"


def recognise(opened: OpenVault, candidates: Mapping[str, Environment]) -> Convention:
    """Finds the candidate environment in which the vault was recorded, and checks the ends of episodes in it.

    Args:
        opened: the vault.
        candidates: environments by the names of their tasks; the first that fits is returned.

    Raises:
        VaultError: no candidate fits, with the reason for each; the values of states or actions are invalid; or an
            episode is longer than the time limit of the task.
    """
    steps = _recorded_steps(opened)
    reasons = []
    for task, env in candidates.items():
        found = _recognise_one(opened, task, env, steps)
        if isinstance(found, Convention):
            return found
        reasons.append(f"{convention_name(task)} {found}")
    raise VaultError(
        f"vault {opened.path} fits no known convention: {'; '.join(reasons)}; choose another --task or vault"
    )


def _recognise_one(opened: OpenVault, task: str, env: Environment, steps: _Steps) -> Convention | str:
    """The convention if it fits, else the reason why it does not fit."""
    spec, sizes = env.spec, opened.sizes
    needed = {"A": spec.num_agents, "O": spec.obs_dim, "U": spec.action_dim}
    if any(sizes[letter] != size for letter, size in needed.items()):
        has, needs = (", ".join(f"{name}={of[name]}" for name in needed) for of in (sizes, needed))
        return f"has {needs}, the vault {has}"
    sources = _state_sources(sizes, env)
    if not sources:
        return f"has a state of {spec.state_dim} numbers, the vault's infos.state of {sizes['S']} has no known layout"
    simulate = _make_simulate(env)
    errors_by_worst = {}
    for state in sources:
        for is_reversed in (False, True):
            errors = _errors(simulate, steps, state, is_reversed)
            worst = float(np.max(list(errors.values())))  # NaN if any is NaN
            errors_by_worst[worst] = errors
            if worst <= TOLERANCE:
                order = ", each agent's actions in reverse" if is_reversed else ""
                layout = "" if state.leaf == "infos.state" else ", state taken from the observations"
                in_order = (lambda s, a, b: simulate(s, a[..., ::-1], b[..., ::-1])) if is_reversed else simulate
                return Convention(
                    task=task,
                    env=env._replace(step=lambda s, a: env.step(s, a[..., ::-1])) if is_reversed else env,
                    is_reversed=is_reversed,
                    state=state,
                    error=worst,
                    description=convention_name(task) + order + layout,
                    simulate=in_order,
                    ends=_checked_ends(opened, state, env, in_order),
                )
    closest = errors_by_worst[min(errors_by_worst, key=lambda error: (np.isnan(error), error))]
    differences = ", ".join(f"{name} by {error:.2g}" for name, error in closest.items())
    return f"simulated in MJX differs in {differences} standard deviations, {TOLERANCE} allowed"


def _make_simulate(env: Environment) -> Simulate:
    def step(current: EnvState, action: Array) -> tuple[EnvState, tuple[Array, ...]]:
        stepped = env.step(current, action)
        return stepped, (stepped.obs, stepped.state, stepped.terminal, stepped.reward)

    def two_steps(state: Array, action: Array, next_action: Array) -> Simulated:
        start = env.set_state(state)
        _, (obs, states, terminal, reward) = jax.lax.scan(step, start, jnp.stack([action, next_action]))
        return Simulated(start.obs, obs[0], states[0], terminal[0], reward[1])

    return jax.jit(jax.vmap(two_steps))


def _state_sources(sizes: Mapping[str, int], env: Environment) -> list[StateSource]:
    """Possible locations of the environment's state, by sizes alone."""
    state_dim = env.spec.state_dim
    if sizes["S"] == state_dim:
        return [StateSource("infos.state", np.arange(state_dim))]
    if sizes["S"] - state_dim in (1, 2):  # with the root position in front
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
    """Steps spread over the vault, each followed by another step of its episode.

    Raises:
        VaultError: there are none, or a value is invalid.
    """
    terminal, truncation = opened.ends()
    is_end = terminal | truncation
    length = min(NUM_SIMULATED // _NUM_BLOCKS, opened.length - 1)
    starts = np.unique(np.linspace(0, opened.length - 1 - length, _NUM_BLOCKS).astype(int)).tolist()
    names = ("observations", "actions", "rewards", "infos.state")
    current = {name: [] for name in names}
    following = {name: [] for name in names}
    for start in starts:
        has_next = ~is_end[start : start + length]
        for name in names:
            values = opened.read(name, start, start + length + 1)
            check_values(opened.path, name, start, values)
            values = values.astype(np.float32)
            current[name].append(values[:-1][has_next])
            following[name].append(values[1:][has_next])
    num_found = sum(map(len, current["rewards"]))
    if num_found == 0:
        raise VaultError(
            f"vault {opened.path}: no step is followed by another of its episode, so none can be simulated; "
            "choose another vault"
        )
    index = np.resize(np.arange(num_found), NUM_SIMULATED)  # one compiled shape for all vaults
    joined = [{name: np.concatenate(parts)[index] for name, parts in of.items()} for of in (current, following)]
    return _Steps(*joined)


def _state_of(leaves: Mapping[str, np.ndarray], state: StateSource) -> np.ndarray:
    leaf = leaves[state.leaf]
    return leaf.reshape(len(leaf), -1)[:, state.columns]


def _errors(simulate: Simulate, steps: _Steps, state: StateSource, is_reversed: bool) -> dict[str, float]:
    """Errors of the simulated state, reward and observations, in standard deviations of the recorded ones.

    Observations are compared by their change, because the state does not contain the root position.
    """
    current, following = steps.current, steps.following
    before, after = _state_of(current, state), _state_of(following, state)
    order = slice(None, None, -1 if is_reversed else 1)
    action, next_action = (jnp.asarray(leaves["actions"][..., order]) for leaves in (current, following))
    simulated = jax.device_get(simulate(jnp.asarray(before), action, next_action))
    reward, obs_change = following["rewards"][:, 0], following["observations"] - current["observations"]
    return {
        "s_{t+1}": _median_error(simulated.next_state, after, after - before),
        "r_{t+1}": _median_error(simulated.next_reward, reward, reward),
        "the change of o_t": _median_error(simulated.next_obs - simulated.obs, obs_change, obs_change),
    }


def _median_error(simulated: np.ndarray, recorded: np.ndarray, spread: np.ndarray) -> float:
    """The median over steps of the largest error of a feature, in standard deviations of its `spread`."""
    scaled = np.abs(simulated - recorded) / (np.std(spread, axis=0, dtype=np.float64) + 1e-3)
    return float(np.median(scaled.reshape(len(scaled), -1).max(axis=1)))


def _checked_ends(opened: OpenVault, source: StateSource, env: Environment, simulate: Simulate) -> Ends:
    def simulate_step(state: Array, action: Array) -> tuple[Array, Array]:
        simulated = simulate(state, action, action)  # the compiled program of the recognition
        return simulated.next_state, simulated.terminal

    state, action = read_states_and_actions(opened, source)
    return check_ends(opened, state, action, env, one_step(simulate_step, NUM_SIMULATED))


def read_in_convention(opened: OpenVault, convention: Convention, max_transitions: int | None = None) -> Episodes:
    """Reads a recognised vault, or a part (see `read_episodes`), with the checked ends of episodes.

    Raises:
        VaultError: its values are invalid.
    """
    ends = (convention.ends.terminal, convention.ends.truncation)
    return read_episodes(opened, max_transitions, convention.state, ends)


def to_task(episodes: Episodes, convention: Convention, task: str, env: Environment) -> Episodes:
    """Converts episodes to the observations and order of actions of another task with the same robot and state.

    Args:
        episodes: the episodes in the vault's convention.
        convention: the convention of the vault.
        task: name of the other task, for the message.
        env: the other task, as `make` builds it; its observations are functions of the state.

    Raises:
        VaultError: the steps, simulated in the other task, differ from the recorded ones.
    """
    if convention.task == task and not convention.is_reversed:
        return episodes
    is_end = (episodes.terminal != 0) | (episodes.truncation != 0)
    has_next = np.flatnonzero(~is_end)
    if env.spec.state_dim != episodes.state.shape[1] or env.spec.num_agents != episodes.action.shape[1]:
        raise VaultError(
            f"{convention.description} and {convention_name(task)} have different robots or agents; choose another task"
        )
    if len(has_next) == 0:
        raise VaultError(
            "no step is followed by another of its episode, so none can be simulated; choose another vault"
        )
    at = has_next[np.linspace(0, len(has_next) - 1, NUM_SIMULATED).astype(int)]
    simulate = _make_simulate(env)
    errors = []
    for is_reversed in (False, True):
        action = episodes.action[..., ::-1] if is_reversed else episodes.action
        state, current, following = (jnp.asarray(leaf) for leaf in (episodes.state[at], action[at], action[at + 1]))
        simulated = jax.device_get(simulate(state, current, following))
        change = episodes.state[at + 1] - episodes.state[at]
        errors.append(_median_error(simulated.next_state, episodes.state[at + 1], change))
        if errors[-1] <= TOLERANCE:
            return dataclasses.replace(
                episodes, obs=_observations(env, episodes.state), action=np.ascontiguousarray(action)
            )
    raise VaultError(
        f"{convention.description}, simulated in {convention_name(task)}, differs in s_{{t+1}} by {min(errors):.2g} "
        f"standard deviations, {TOLERANCE} allowed; choose another task"
    )


def _observations(env: Environment, state: Float[np.ndarray, "T S"]) -> Float[np.ndarray, "T A O"]:
    """The environment's observations of each state, in chunks of some thousand."""
    observe = jax.jit(jax.vmap(lambda state: env.set_state(state).obs))
    size = 8192
    obs = np.empty((len(state), env.spec.num_agents, env.spec.obs_dim), np.float32)
    for start in range(0, len(state), size):
        part = state[start : start + size]
        obs_of_state = observe(jnp.asarray(np.pad(part, ((0, size - len(part)), (0, 0)))))
        obs[start : start + len(part)] = np.asarray(obs_of_state)[: len(part)]
    return obs


def load_vault(task: str, path: str | Path, max_transitions: int | None = None) -> tuple[Convention, Episodes]:
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
    opened = open_vault(Path(path))
    robot = task.removesuffix(OLD_WRAPPER)
    names = [name for name in TASKS if name == robot or name.startswith(f"{robot}-")]
    convention = recognise(opened, {name: mamujoco.make(name) for name in names})
    if task != robot and convention.task != task:
        found, expected = convention.description, convention_name(task)
        raise VaultError(f"vault {opened.path} is of {found}, not of {expected}; use task {robot}")
    return convention, read_in_convention(opened, convention, max_transitions)
