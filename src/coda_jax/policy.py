"""Trained joint policies: weights and input scales in one file that needs no dataset, no prior and no learner.

The training job writes `policy.npz` to its run folder after every round; `load_policy` reads it on any machine.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import MinLen
from jax import export
from jaxtyping import Array, Float

from coda_jax.artefact import ArtefactError, read_artefact, write_artefact
from coda_jax.envs.rollout import Act
from coda_jax.marl.actor_critic import ActorCriticState
from coda_jax.marl.learner import Learner
from coda_jax.marl.networks import RecurrentPolicy
from coda_jax.ranges import NonNegativeCount, RangeError, Seed, check_range
from coda_jax.types import Params, PRNGKey, TaskSpec

FILE = "policy.npz"
"""Name of the artefact in a run folder."""

PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms that an exported policy runs on."""


@chex.dataclass(frozen=True)
class PolicyWeights:
    """The weights of `RecurrentPolicy`, and the units in which it sees observations.

    network:  its variables, `{"params": ...}`.
    obs_mean: `[*batch, A, O]` subtracted from observations.
    obs_std:  `[*batch, A, O]` by which the difference is divided.
    """

    network: Params
    obs_mean: Float[Array, "*batch A O"]
    obs_std: Float[Array, "*batch A O"]


class Policy(NamedTuple):
    """Trained joint policies of one task: one for each seed of a run.

    spec:    sizes of the task; `spec.name` names it for `make_env`.
    seeds:   the seeds, in the order of the weights.
    weights: leaves `[seeds, ...]`.
    rounds:  rounds of Algorithm 2 that they were trained for.

    Examples:
        >>> import tempfile, pathlib
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, environment
        >>> env = environment(MULTIPLICATION)
        >>> learner = cj.maddpg_bc(env.spec, cj.MaddpgBcConfig(), cj.raw_inputs(env.spec))
        >>> states = jax.vmap(learner.init)(jax.random.split(jax.random.key(0), 3))
        >>> policy = cj.policy_of(env.spec, states, seeds=(0, 1, 2), rounds=0)
        >>> act, carry = policy.act(seed=1), policy.initial_carry((4,))
        >>> cj.episode_returns(env, act, carry, jax.random.key(1), num_envs=4).shape
        (4,)
    """

    spec: TaskSpec
    seeds: tuple[int, ...]
    weights: PolicyWeights
    rounds: int

    @property
    def linear_width(self) -> int:
        """Units of the layer before the GRU."""
        return self.weights.network["params"]["Dense_0"]["bias"].shape[-1]

    @property
    def hidden_width(self) -> int:
        """N, units of the GRU."""
        return self.weights.network["params"]["Dense_1"]["kernel"].shape[-2]

    def initial_carry(self, batch_shape: tuple[int, ...] = ()) -> Float[Array, "*batch A N"]:
        """The memory at the start of an episode."""
        return jnp.zeros((*batch_shape, self.spec.num_agents, self.hidden_width))

    def weights_of(self, seed: int) -> PolicyWeights:
        """The weights of one seed.

        Raises:
            ValueError: the policy has no such seed.
        """
        index = self.seeds.index(seed)
        return jax.tree.map(lambda leaf: leaf[index], self.weights)

    def apply(
        self, weights: PolicyWeights, obs: Float[Array, "*batch A O"], carry: Float[Array, "*batch A N"]
    ) -> tuple[Float[Array, "*batch A U"], Float[Array, "*batch A N"]]:
        """The actions mu^i(o^i) in [-1, 1] of one seed's weights, and the next memory; `jax.vmap` takes all seeds."""
        network = RecurrentPolicy(self.linear_width, self.hidden_width, self.spec.action_dim)
        ones = (1,) * (obs.ndim - 2)
        mean, std = (x.reshape(*ones, *x.shape) for x in (weights.obs_mean, weights.obs_std))
        apply = cast(Callable[..., Any], network.apply)
        action, carry = apply(weights.network, ((obs - mean) / std)[None], carry)
        return action[0], carry

    def act(self, seed: int) -> Act:
        """One seed's joint policy for `rollout` and `episode_returns`; it draws nothing, so the key does not matter."""
        weights = self.weights_of(seed)

        def act(obs: Array, carry: Array, key: PRNGKey | None = None) -> tuple[Array, Array]:
            del key
            return self.apply(weights, obs, carry)

        return act

    def as_learner(self) -> Learner:
        """A learner that no longer learns, to guide samples by: `guided(model, policy.as_learner(), 0.6)`.

        Its states are the weights of one seed; `init` gives those of the first, `update` returns them unchanged.
        """
        return Learner(
            init=lambda key: self.weights_of(self.seeds[0]),
            update=lambda state, trajectory, weights, key: (state, {}),
            act=self.apply,
            initial_carry=self.initial_carry,
        )

    def take(self, seeds: tuple[int, ...]) -> "Policy":
        """The policies of some of the seeds, in that order.

        Raises:
            ValueError: the policy lacks one of them.
        """
        index = np.array([self.seeds.index(seed) for seed in seeds], int)
        return self._replace(seeds=tuple(seeds), weights=jax.tree.map(lambda leaf: leaf[index], self.weights))


def policy_of(spec: TaskSpec, states: ActorCriticState, seeds: tuple[int, ...], rounds: int) -> Policy:
    """The policies of the states of a MADDPG+BC learner, leaves `[seeds, ...]`, on one device.

    Examples:
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, environment
        >>> env = environment(MULTIPLICATION)
        >>> learner = cj.maddpg_bc(env.spec, cj.MaddpgBcConfig(), cj.raw_inputs(env.spec))
        >>> states = jax.vmap(learner.init)(jax.random.split(jax.random.key(0), 3))
        >>> cj.policy_of(env.spec, states, seeds=(0, 1, 2), rounds=0).hidden_width
        64
    """
    inputs = states.inputs
    weights = PolicyWeights(network=states.policy, obs_mean=inputs.obs_mean, obs_std=inputs.obs_std)
    weights = jax.tree.map(jnp.asarray, jax.device_get(weights))
    return Policy(spec, tuple(int(seed) for seed in seeds), weights, rounds)


def save_policy(path: str | os.PathLike[str], policy: Policy) -> None:
    """Writes a policy as one `.npz`, atomically; `load_policy` reads it, and so does `numpy.load`.

    Examples:
        >>> import pathlib, tempfile
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, environment
        >>> env = environment(MULTIPLICATION)
        >>> learner = cj.maddpg_bc(env.spec, cj.MaddpgBcConfig(), cj.raw_inputs(env.spec))
        >>> states = jax.vmap(learner.init)(jax.random.split(jax.random.key(0), 2))
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "policy.npz"
        >>> cj.save_policy(file, cj.policy_of(env.spec, states, seeds=(0, 1), rounds=0))
        >>> cj.load_policy(file).seeds
        (0, 1)
    """
    description = {"spec": dataclasses.asdict(policy.spec), "seeds": list(policy.seeds), "rounds": policy.rounds}
    weights = policy.weights
    arrays = {"network": weights.network, "obs_mean": weights.obs_mean, "obs_std": weights.obs_std}
    write_artefact(path, "policy", description, arrays)


def load_policy(run: str | os.PathLike[str]) -> Policy:
    """Reads trained policies: from a run folder, or from a file that `save_policy` wrote.

    Raises:
        ArtefactError: there is none, it cannot be read, or its seeds, rounds or weights are not those of a policy.

    Examples:
        >>> import pathlib, tempfile
        >>> from coda_jax.envs.polynomial import MULTIPLICATION, environment
        >>> env = environment(MULTIPLICATION)
        >>> learner = cj.maddpg_bc(env.spec, cj.MaddpgBcConfig(), cj.raw_inputs(env.spec))
        >>> states = jax.vmap(learner.init)(jax.random.split(jax.random.key(0), 2))
        >>> run = pathlib.Path(tempfile.mkdtemp())
        >>> cj.save_policy(run / "policy.npz", cj.policy_of(env.spec, states, seeds=(0, 1), rounds=0))
        >>> policy = cj.load_policy(run)
        >>> policy.act(seed=0)(jnp.zeros((2, 0)), policy.initial_carry(), None)[0].shape
        (2, 1)
    """
    path = Path(run)
    path = path / FILE if path.is_dir() else path
    description, arrays = read_artefact(path, "policy")
    try:
        spec = TaskSpec(**description["spec"])
        weights = PolicyWeights(**jax.tree.map(jnp.asarray, arrays))
        policy = Policy(spec, tuple(description["seeds"]), weights, description["rounds"])
        check_range("seeds", policy.seeds, Annotated[tuple[Seed, ...], MinLen(1)])
        check_range("rounds", policy.rounds, NonNegativeCount)
        if len(set(policy.seeds)) < len(policy.seeds):
            raise RangeError("seeds", policy.seeds, "each must occur once")
        expected = (len(policy.seeds), spec.num_agents, spec.obs_dim)
        shapes = {policy.weights.obs_mean.shape, policy.weights.obs_std.shape}
        if shapes != {expected} or policy.linear_width < 1 or policy.hidden_width < 1:
            raise ValueError(f"its arrays are {shapes}, not {expected}")
        if not (weights.obs_std > 0).all():
            raise ValueError("its obs_std is not positive")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"{path} is no policy ({' '.join(str(error).split())})") from error
    return policy


def export_policy(policy: Policy, seed: int) -> bytes:
    """One seed's policy as a serialised `jax.export` artefact, its weights included.

    `jax.export.deserialize(data).call(obs [b, A, O], carry [b, A, N])` gives `(action [b, A, U], carry)` for any
    number b of environments, on CPU, CUDA and TPU, without this package.

    Raises:
        ValueError: the policy has no such seed.
    """
    weights = jax.tree.map(jnp.asarray, policy.weights_of(seed))
    spec = policy.spec
    (b,) = export.symbolic_shape("b")
    obs = jax.ShapeDtypeStruct((b, spec.num_agents, spec.obs_dim), jnp.float32)
    carry = jax.ShapeDtypeStruct((b, spec.num_agents, policy.hidden_width), jnp.float32)
    step = jax.jit(lambda obs, carry: policy.apply(weights, obs, carry))
    return bytes(export.export(step, platforms=PLATFORMS)(obs, carry).serialize())
