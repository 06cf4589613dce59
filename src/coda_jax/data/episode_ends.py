"""Checks the ends of a vault's episodes in the simulator: which steps are ends, and which ends are terminal.

A step is an end if the simulator, set to (s_t, a_t), does not arrive at the recorded s_{t+1}. Simulating all steps of
a large vault takes long, so these are simulated: the recorded ends and their neighbours, steps before a state that
looks like a start, steps with a large change of the state, all steps of episodes longer than the time limit, and
`NUM_DRAWN` steps drawn at random. If one of these breaks without another reason to suspect it, all steps are simulated.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from coda_jax.data.vault_files import OpenVault, VaultError
from coda_jax.envs.base import Environment
from coda_jax.types import PRNGKey, TaskSpec

FOLLOWS = 0.1
"""Largest error of a simulated state that equals the recorded one, in standard deviations of the change of the state.

Correct steps of HalfCheetah, Ant and Hopper in C have errors below 0.01, resets have errors above 2.
"""
BREAK = 1.0
"""An error of a simulated state above this proves that the recorded one does not follow. In between, flags are kept."""
_UNEXPLAINED = 0.5
"""A break also has an error of at least this share of the recorded change: one wrong velocity is no break."""
_LARGE_CHANGE = 5.0
"""Changes of an entry of the state above this number of standard deviations are simulated."""
NUM_DRAWN = 4096
"""Steps drawn at random: all steps of a small vault, and some seconds of MJX on two cores.

Of a vault of N steps with k unsuspected breaks, all are missed with probability exp(-NUM_DRAWN k / N).
"""
_NUM_STARTS = 256
_START_MARGIN = 0.5
"""States look like starts within the range of some starts, widened by this share on both sides."""
_NUM_JITTERED = 8
_JITTER = 0.01
"""Perturbations that test whether a step only just ends, or does not end, the episode; in the unit of the errors."""

SimulateStep = Callable[
    [Float[np.ndarray, "N S"], Float[np.ndarray, "N A U"]], tuple[Float[np.ndarray, "N S"], Bool[np.ndarray, "N"]]
]
"""Simulates one step from each of N states: the next states, and whether the step is terminal."""


class Ends(NamedTuple):
    """The ends of a vault's episodes, checked in the simulator; returned by `check_ends`."""

    terminal: Bool[np.ndarray, "T"]
    """Whether the episode truly ended after the step."""
    truncation: Bool[np.ndarray, "T"]
    """Whether the episode was cut off after the step; never at a terminal step."""
    repairs: tuple[str, ...]
    """Differences from the vault's flags, in words; empty if all flags are right."""


class _Recording(NamedTuple):
    """A vault's steps, and the tools that check its ends."""

    state: Float[np.ndarray, "T S"]
    action: Float[np.ndarray, "T A U"]
    simulate: SimulateStep
    scale: Float[np.ndarray, "S"]
    """Standard deviation of the change of each entry of the state, between steps of an episode."""


def check_ends(
    opened: OpenVault,
    state: Float[np.ndarray, "T S"],
    action: Float[np.ndarray, "T A U"],
    env: Environment,
    simulate: SimulateStep,
) -> Ends:
    """Compares the recorded ends of episodes with the simulator, and repairs them.

    Missing ends are added, and ends whose successor follows are removed, unless the episode would exceed the time
    limit: such an end stays as a truncation. An end is terminal if the simulator terminates there. If small
    perturbations of the state change its answer, an unambiguous flag is kept. Flags are ambiguous if a step has both,
    and if it is terminal at the time limit.

    Args:
        opened: the vault, for its flags; some step has none.
        state: the states of all its steps.
        action: the actions of all its steps, in the order that `simulate` takes.
        env: the task, for its starts and its time limit.
        simulate: simulates steps.

    Raises:
        VaultError: an episode is longer than the time limit of the task, and the simulator finds no end in it.
    """
    terminal, truncation = opened.ends()
    flagged = terminal | truncation
    change = np.diff(state, axis=0)
    inside = change[~flagged[:-1]]
    recording = _Recording(state, action, simulate, np.std(inside, axis=0, dtype=np.float64) + 1e-3)
    is_end = _find_ends(recording, flagged, _looks_like_start(env, state), env.spec)
    _check_lengths(opened, is_end, env.spec)
    checked_terminal = _ask_terminals(recording, is_end, terminal, truncation, env.spec)
    checked_truncation = is_end & ~checked_terminal
    stored = flagged | (np.arange(len(flagged)) == len(flagged) - 1)  # the recording ends the last episode
    return Ends(checked_terminal, checked_truncation, _describe(stored, terminal, is_end, checked_terminal))


def _find_ends(
    recording: _Recording, flagged: Bool[np.ndarray, "T"], looks_like_start: Bool[np.ndarray, "T"], spec: TaskSpec
) -> Bool[np.ndarray, "T"]:
    """The flagged ends that hold, and the missing ones."""
    last = len(flagged) - 1
    large = (np.abs(np.diff(recording.state, axis=0)) > _LARGE_CHANGE * recording.scale).any(axis=1)
    suspected = flagged[:-1] | flagged[1:] | looks_like_start[1:] | large
    suspected[1:] |= flagged[:-2]
    simulated = suspected.copy()
    simulated[np.random.default_rng(0).permutation(last)[:NUM_DRAWN]] = True
    follows, breaks = _compare(recording, np.flatnonzero(simulated))
    if (breaks[:-1] & ~suspected).any():
        breaks |= _compare(recording, np.flatnonzero(~simulated))[1]
        simulated[:] = True
    is_end = flagged | breaks
    is_end[last] = True
    # Episodes that are still too long have every step simulated.
    start = np.concatenate([[0], np.flatnonzero(is_end)[:-1] + 1])
    lengths = np.diff(np.append(start, last + 1))
    too_long = np.repeat(lengths > spec.episode_length, lengths)
    too_long[:-1] &= ~simulated
    too_long[last] = False
    if too_long.any():
        is_end |= _compare(recording, np.flatnonzero(too_long))[1]
    wrong = flagged & follows
    if wrong.any():
        _, is_terminal = recording.simulate(recording.state[wrong], recording.action[wrong])
        wrong[np.flatnonzero(wrong)[is_terminal]] = False
    _remove(is_end, wrong, spec.episode_length)
    return is_end


def _remove(is_end: Bool[np.ndarray, "T"], wrong: Bool[np.ndarray, "T"], episode_length: int) -> None:
    """Removes wrong ends in place, except where the episode would be longer than the time limit without the end."""
    ends = np.flatnonzero(is_end)
    start = 0
    for end, following in itertools.pairwise(ends):
        if wrong[end] and following - start + 1 <= episode_length:
            is_end[end] = False
        else:
            start = end + 1


def _compare(recording: _Recording, at: Int[np.ndarray, "N"]) -> tuple[Bool[np.ndarray, "T"], Bool[np.ndarray, "T"]]:
    """Whether the successors of some steps follow from them, and whether they provably do not."""
    state, scale = recording.state, recording.scale
    simulated, _ = recording.simulate(state[at], recording.action[at])
    error = np.abs(simulated - state[at + 1]) / scale
    change = np.linalg.norm((state[at + 1] - state[at]) / scale, axis=1)
    largest = error.max(axis=1)
    follows, breaks = np.zeros(len(state), bool), np.zeros(len(state), bool)
    follows[at] = largest <= FOLLOWS
    breaks[at] = (largest > BREAK) & (np.linalg.norm(error, axis=1) > _UNEXPLAINED * change)
    return follows, breaks


def _looks_like_start(env: Environment, state: Float[np.ndarray, "T S"]) -> Bool[np.ndarray, "T"]:
    """Whether each state lies in the range of the task's starts, a little widened."""

    def start(key: PRNGKey) -> Array:
        return env.reset(key).state

    starts = np.asarray(jax.jit(jax.vmap(start))(jax.random.split(jax.random.key(0), _NUM_STARTS)))
    low, high = starts.min(axis=0), starts.max(axis=0)
    margin = _START_MARGIN * (high - low) + 1e-3
    return ((state > low - margin) & (state < high + margin)).all(axis=1)


def _check_lengths(opened: OpenVault, is_end: Bool[np.ndarray, "T"], spec: TaskSpec) -> None:
    ends = np.flatnonzero(is_end)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if (lengths > spec.episode_length).any():
        number = int(np.argmax(lengths > spec.episode_length))
        raise VaultError(
            f"vault {opened.path}: episode {number}, from step {starts[number]} to {ends[number]}, has "
            f"{lengths[number]:,} steps, more than the {spec.episode_length:,} of {spec.name}, and "
            "simulating them finds no end; remove that episode"
        )


def _ask_terminals(
    recording: _Recording,
    is_end: Bool[np.ndarray, "T"],
    terminal: Bool[np.ndarray, "T"],
    truncation: Bool[np.ndarray, "T"],
    spec: TaskSpec,
) -> Bool[np.ndarray, "T"]:
    """Which ends are terminal: the simulator's answer, or the flag where the answer is not certain."""
    at = np.flatnonzero(is_end)
    lengths = np.diff(at, prepend=-1)
    _, answer = recording.simulate(recording.state[at], recording.action[at])
    flag = terminal[at]
    is_clear = (flag != truncation[at]) & ~(flag & (lengths == spec.episode_length))
    doubted = np.flatnonzero(is_clear & (answer != flag))
    if len(doubted):
        copies = np.repeat(at[doubted], _NUM_JITTERED)
        noise = np.random.default_rng(0).normal(size=recording.state[copies].shape).astype(np.float32)
        jittered = recording.state[copies] + _JITTER * recording.scale.astype(np.float32) * noise
        answers = recording.simulate(jittered, recording.action[copies])[1].reshape(-1, _NUM_JITTERED)
        is_certain = (answers == answer[doubted, None]).all(axis=1)
        answer[doubted[~is_certain]] = flag[doubted[~is_certain]]
    checked = np.zeros_like(is_end)
    checked[at] = answer
    return checked


def _describe(
    stored: Bool[np.ndarray, "T"],
    terminal: Bool[np.ndarray, "T"],
    is_end: Bool[np.ndarray, "T"],
    checked_terminal: Bool[np.ndarray, "T"],
) -> tuple[str, ...]:
    """The differences between stored and checked ends, with the first step of each kind."""
    episode = np.cumsum(is_end) - is_end
    kept = stored & is_end
    kinds = {
        "ends without a flag added": is_end & ~stored,
        "flags that are not ends removed": stored & ~is_end,
        "terminals turned into truncations": kept & terminal & ~checked_terminal,
        "truncations turned into terminals": kept & ~terminal & checked_terminal,
    }
    return tuple(
        f"{where.sum():,} {kind}, the first in episode {episode[first]} at step {first}"
        for kind, where in kinds.items()
        if where.any()
        for first in [int(np.argmax(where))]
    )


def one_step(simulate: Callable[[Array, Array], tuple[Array, Array]], batch_size: int) -> SimulateStep:
    """Simulates any number of steps in batches of one compiled size.

    Args:
        simulate: a jitted function of states `[B, S]` and actions `[B, A, U]` that returns next states and terminals.
        batch_size: B.
    """

    def simulate_all(state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        next_state, terminal = np.empty_like(state), np.empty(len(state), bool)
        for start in range(0, len(state), batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), len(state) - 1)
            simulated = jax.device_get(simulate(jnp.asarray(state[rows]), jnp.asarray(action[rows])))
            num = min(batch_size, len(state) - start)
            next_state[start : start + num], terminal[start : start + num] = (leaf[:num] for leaf in simulated)
        return next_state, terminal

    return simulate_all
