"""Which starts guided samples prefer: how far guidance moves them, and how the recorded teams acted from near there.

Eq. 15 prefers starts from which the data's actions are likely under the policy (docs/starts.md).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from coda_jax.backend import full_precision
from coda_jax.data.dataset import Dataset, sample_windows
from coda_jax.envs.base import Environment
from coda_jax.envs.rollout import rollout
from coda_jax.evaluation import action_log_likelihood
from coda_jax.marl.learner import Learner, LearnerState
from coda_jax.types import PRNGKey, Trajectory

RECORDED_WINDOWS = 2048
"""Recorded windows among which the nearest to a start is looked for."""


class Selection(NamedTuple):
    """The two measures, each `[*batch]`; see `start_shift` and `start_log_likelihood`."""

    shift: Float[Array, "*batch"]
    log_likelihood: Float[Array, "*batch"]


def recorded_windows(dataset: Dataset) -> Trajectory:
    """The recorded windows that starts are compared with, always the same."""
    draw = jax.jit(lambda dataset: sample_windows(dataset, jax.random.key(2), RECORDED_WINDOWS, len(dataset.offsets)))
    return draw(dataset)


def start_shift(
    starts: Float[Array, "N S"], reference: Float[Array, "M S"], unit: Float[Array, "S"]
) -> Float[Array, ""]:
    """Root mean square, over features, of the difference of two mean states in units; a unit of 0 leaves one out."""
    difference = jnp.mean(starts, axis=0) - jnp.mean(reference, axis=0)
    squared = jnp.where(unit > 0, jnp.square(difference / jnp.where(unit > 0, unit, 1.0)), 0.0)
    return jnp.sqrt(jnp.sum(squared) / jnp.maximum(jnp.sum(unit > 0), 1))


@full_precision
def start_log_likelihood(
    starts: Float[Array, "N S"],
    recorded: Float[Array, "M S"],
    unit: Float[Array, "S"],
    log_likelihood: Float[Array, "M"],
) -> Float[Array, ""]:
    """The mean over starts of the log-likelihood of the recorded window that begins nearest to it, in units."""
    scale = jnp.where(unit > 0, unit, jnp.inf)

    def at(start: Float[Array, "S"]) -> Float[Array, ""]:
        distance = jnp.sum(jnp.square((recorded - start[None]) / scale[None]), axis=1)
        return log_likelihood[jnp.argmin(distance)]

    return jnp.mean(jax.lax.map(at, starts, batch_size=16))


Select = Callable[[LearnerState, Float[Array, "S L N F"], Float[Array, "S M F"], Trajectory], Selection]
"""(policies of the seeds, first states, those of the same noise without guidance, recorded windows) -> `[S, L]`."""


def make_select(learner: Learner, mesh: Mesh) -> Select:
    """The selection of sets of starts `[S, L, N, features]`, against others `[S, M, features]`, seed by seed."""

    def of_seed(state: LearnerState, starts: Array, reference: Array, recorded: Trajectory) -> Selection:
        log_likelihood = action_log_likelihood(learner, state, recorded)
        first = recorded.state[:, 0]
        unit = jnp.std(first, axis=0)

        def of_set(starts: Float[Array, "N F"]) -> Selection:
            shift = start_shift(starts, reference, unit)
            return Selection(shift, start_log_likelihood(starts, first, unit, log_likelihood))

        return jax.lax.map(of_set, starts)

    seed, shared = PartitionSpec("seed"), PartitionSpec()
    each = jax.vmap(of_seed, in_axes=(0, 0, 0, None))
    specs = (seed, seed, seed, shared)
    return jax.jit(jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=seed, check_vma=False))


def make_visited(
    env: Environment, learner: Learner, mesh: Mesh, num_episodes: int, num: int
) -> Callable[[LearnerState, PRNGKey], Float[Array, "S 1 num F"]]:
    """States that each seed's policy visits in `num_episodes` episodes, `num` at even distances; keys are consumed."""

    @full_precision
    def of_seed(state: LearnerState, key: PRNGKey) -> Float[Array, "1 num F"]:
        def act(obs: Array, carry: Any, key: PRNGKey) -> tuple[Array, Any]:
            del key
            return learner.act(state, obs, carry)

        memory = learner.initial_carry((num_episodes,))
        played = rollout(env, act, memory, key, num_episodes, env.spec.episode_length)
        visited = played.steps.state.reshape(-1, env.spec.state_dim)
        return visited[jnp.linspace(0, len(visited) - 1, num).astype(jnp.int32)][None]

    seed = PartitionSpec("seed")
    each = jax.vmap(of_seed)
    return jax.jit(jax.shard_map(each, mesh=mesh, in_specs=seed, out_specs=seed, check_vma=False))


def levels(
    select: Select,
    visited: Callable[[LearnerState, PRNGKey], Float[Array, "S 1 num F"]],
    policies: dict[str, LearnerState],
    recorded: Trajectory,
    keys: PRNGKey,
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Both measures of the data's own starts and of the states that each policy visits, by policy, set and seed."""
    first = jnp.broadcast_to(recorded.state[None, :, 0], (len(keys), *recorded.state[:, 0].shape))
    found = {}
    for policy, state in policies.items():
        sets = {"data": first[:, None], "roll-outs": visited(state, jax.random.clone(keys))}
        found[policy] = {}
        for name, starts in sets.items():
            selection = jax.device_get(select(state, starts, first, recorded))
            found[policy][name] = {
                "start_shift": selection.shift[:, 0].tolist(),
                "start_log_likelihood": selection.log_likelihood[:, 0].tolist(),
            }
    return found
