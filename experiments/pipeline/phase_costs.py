"""The costs of a run's phases, from programs that are compiled for the shapes of the run and never run.

Each phase is a program of one step or one call, compiled by itself, times the number of its calls.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from coda_jax import transforms
from coda_jax.augmentation.base import Augmentation
from coda_jax.backend import Sizes, full_precision
from coda_jax.coda import mix, row_weights
from coda_jax.data.dataset import Dataset, sample_windows
from coda_jax.data.named import GROUP
from coda_jax.data.teams import NOISE, assets, load_teams, snapshots_at
from coda_jax.diffusion.generator import GeneratorConfig, make_generator
from coda_jax.diffusion.sampler_config import SamplerConfig
from coda_jax.dynamics.ensemble import DynamicsConfig, make_dynamics
from coda_jax.envs.base import Environment
from coda_jax.marl.learner import Learner, LearnerState
from coda_jax.marl.matd3 import team_policy
from coda_jax.prior import Prior, TrajectoryModel, fit_updates
from coda_jax.schedule import CodaConfig, make_schedule
from coda_jax.types import Metrics, Params, PRNGKey, TaskSpec, Trajectory
from experiments.host.program_cost import ProgramCost, nbytes, program_cost

_ENVIRONMENTS = 20
"""Environments of the physics step that is compiled."""


class PhaseCost(NamedTuple):
    """The cost of a phase on each device.

    name:  the phase.
    steps: its steps, one after the other.
    unit:  what such a step is.
    cost:  of the whole phase; its memory includes what is held from other phases.
    """

    name: str
    steps: int
    unit: str
    cost: ProgramCost


def added(phases: Iterable[PhaseCost]) -> list[PhaseCost]:
    """Phases of one name and unit, one after the other, as one."""
    sums: dict[tuple[str, str], PhaseCost] = {}
    for each in phases:
        before = sums.get((each.name, each.unit))
        if before is not None:
            each = each._replace(steps=before.steps + each.steps, cost=before.cost.then(each.cost))
        sums[each.name, each.unit] = each
    return list(sums.values())


class Trained(NamedTuple):
    """What is trained: the task, the learner, its source of synthetic trajectories and the data, by their shapes.

    sampler: by which the source samples; None where it rolls out trajectories token by token.
    """

    env: Environment
    learner: Learner
    augmentation: Augmentation | None
    sampler: SamplerConfig | None
    prior: Any
    dataset: Dataset


def key_shapes(*shape: int) -> Any:
    """Random keys, by their shapes."""
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape) if shape else jax.random.key(0))


def dataset_shapes(spec: TaskSpec, num_steps: int, horizon: int) -> Dataset:
    """A dataset of so many steps, by its shapes."""
    channels = transforms.num_channels(spec)
    return jax.eval_shape(
        lambda: Dataset(
            steps=transforms.unpack(jnp.zeros((num_steps, channels)), spec),
            starts=jnp.zeros(num_steps, jnp.int32),
            offsets=jnp.zeros(horizon, jnp.int32),
        )
    )


def prior_shapes(model: TrajectoryModel, num_steps: int) -> Prior:
    """A prior that is fitted to so many steps, by its shapes."""
    few = np.random.default_rng(0).normal(size=(min(num_steps, 2048), transforms.num_channels(model.spec)))
    transform = transforms.fit(few)  # of as many knots as that of all steps
    return jax.eval_shape(lambda: Prior(transform=transform, denoiser=model.generator.init(jax.random.key(0)).ema))


def physics_cost(env: Environment) -> ProgramCost:
    """Compiles a step of `_ENVIRONMENTS` environments, the same for all runs of a task: it takes long to compile."""
    state = jax.eval_shape(jax.vmap(env.reset), key_shapes(_ENVIRONMENTS))
    action = jax.ShapeDtypeStruct((_ENVIRONMENTS, env.spec.num_agents, env.spec.action_dim), jnp.float32)
    return program_cost(jax.vmap(env.step), state, action)


def _physics_of(physics: ProgramCost, num_envs: int) -> ProgramCost:
    """A step of another number of environments: as many kernels, on arrays in proportion."""
    ratio = num_envs / _ENVIRONMENTS
    return ProgramCost(physics.flops * ratio, physics.bytes * ratio, physics.kernels, physics.memory * ratio)


def collection_phase(
    env: Environment, num_episodes: int, physics: ProgramCost, num_devices: int, sizes: Sizes
) -> PhaseCost:
    """The roll-outs of a named dataset, in the chunks of `coda_jax.data.named.record`."""
    spec = env.spec
    groups = min(max(1, sizes.episodes // GROUP), -(-num_episodes // (GROUP * num_devices)))
    num_envs = GROUP * groups
    teams = load_teams(assets(spec.name))
    weights = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, snapshots_at(teams, np.zeros((num_envs, 2), int))))
    apply = cast(Callable[..., Array], team_policy(spec, teams.width).apply)

    def act_and_reset(weights: Params, obs: Array, key: PRNGKey, keys: PRNGKey) -> tuple[Array, Any]:
        mu = jax.vmap(apply)(weights, obs)
        return jnp.clip(mu + NOISE * jax.random.normal(key, mu.shape), -1.0, 1.0), jax.vmap(env.reset)(keys)

    obs = jax.ShapeDtypeStruct((num_envs, spec.num_agents, spec.obs_dim), jnp.float32)
    policy = program_cost(full_precision(act_and_reset), weights, obs, key_shapes(), key_shapes(num_envs))
    num_steps = -(-num_episodes // (num_envs * num_devices)) * spec.episode_length
    recorded = 4 * num_envs * spec.episode_length * (transforms.num_channels(spec) + 1)
    cost = _physics_of(physics, num_envs).then(policy).times(num_steps)
    return PhaseCost("data", num_steps, "physics steps", cost.holding(recorded))


def dynamics_phase(config: DynamicsConfig, spec: TaskSpec, dataset: Dataset) -> PhaseCost:
    """The fit of a one-step model, on one device."""
    cost = program_cost(make_dynamics(spec, config).fit, dataset, key_shapes())
    return PhaseCost("dynamics fit", config.num_updates, "updates", cost)


def fit_phase(
    config: GeneratorConfig, model: TrajectoryModel, dataset: Dataset, num_devices: int, sizes: Sizes
) -> PhaseCost:
    """The fit of a denoiser, its mini-batches spread over the devices."""
    share = dataclasses.replace(config, batch_size=max(1, config.batch_size // num_devices))
    channels = transforms.num_channels(model.spec)
    generator = make_generator(share, channels, model.horizon, max(1, sizes.windows // num_devices))

    def update(state: Any, dataset: Dataset, z: Array, key: PRNGKey) -> tuple[Any, Metrics]:
        return fit_updates(generator, state, dataset, z, key, 1)

    z = jax.ShapeDtypeStruct((*dataset.starts.shape, channels), jnp.float32)
    cost = program_cost(update, jax.eval_shape(generator.init, key_shapes()), dataset, z, key_shapes())
    return PhaseCost("denoiser fit", config.num_updates, "updates", cost.times(config.num_updates))


def training_phases(
    trained: Trained, config: CodaConfig, seeds: int, physics: ProgramCost, sizes: Sizes
) -> list[PhaseCost]:
    """Generation, updates and evaluation of so many seeds on a device, in all rounds."""
    plans = [scheduled.plan for scheduled in make_schedule(config, trained.augmentation)]
    num_updates, num_evaluations, num_generations = (
        int(sum(getattr(plan, name) for plan in plans)) for name in ("num_updates", "evaluate", "generate")
    )
    learners = jax.eval_shape(jax.vmap(trained.learner.init), key_shapes(seeds))
    num_synthetic = 1 if trained.augmentation is None else config.num_samples(trained.augmentation)
    num_reference = min(config.reference_trajectories, num_synthetic)
    synthetic, reference = (
        _trajectories(trained.env.spec, (seeds, num, config.horizon)) for num in (num_synthetic, num_reference)
    )
    held = nbytes((learners, synthetic, reference, trained.dataset, trained.prior))

    phases = []
    if trained.augmentation is not None:
        calls, num = _calls(config, num_synthetic, seeds, sizes)
        guidance = jax.ShapeDtypeStruct((), jnp.float32)
        sample = program_cost(
            _sample(trained.augmentation, num), learners, trained.dataset, trained.prior, guidance, key_shapes(seeds)
        )
        per_call, unit = _steps_of(trained.sampler, config.horizon)
        phases.append(
            PhaseCost("generation", num_generations * calls * per_call, unit, sample.times(num_generations * calls))
        )
    update = program_cost(_update(trained, config), learners, synthetic, trained.dataset, key_shapes(seeds))
    phases.append(PhaseCost("learner", num_updates, "updates", update.times(num_updates)))
    if num_evaluations:
        spec, num_envs = trained.env.spec, config.evaluation_episodes
        num_steps = num_evaluations * spec.episode_length
        obs = jax.ShapeDtypeStruct((seeds, num_envs, spec.num_agents, spec.obs_dim), jnp.float32)
        memory = jax.eval_shape(lambda: trained.learner.initial_carry((seeds, num_envs)))
        acting = program_cost(full_precision(jax.vmap(trained.learner.act)), learners, obs, memory)
        cost = _physics_of(physics, seeds * num_envs).then(acting)
        phases.append(PhaseCost("evaluation", num_steps, "physics steps", cost.times(num_steps)))
    return [each._replace(cost=each.cost.holding(held)) for each in phases]


def _trajectories(spec: TaskSpec, shape: tuple[int, int, int]) -> Trajectory:
    return jax.eval_shape(lambda: transforms.unpack(jnp.zeros((*shape, transforms.num_channels(spec))), spec))


def _calls(config: CodaConfig, num_synthetic: int, seeds: int, sizes: Sizes) -> tuple[int, int]:
    """Calls of the sampler one after the other, and the trajectories a seed of each (see `coda.make_trainer`)."""
    chunk_size = max(1, config.chunk_size // seeds)
    at_once = max(1, sizes.trajectories // config.chunk_size)
    num_chunks = math.ceil(num_synthetic / chunk_size)
    calls = math.ceil(num_chunks / at_once)
    return calls, math.ceil(num_chunks / calls) * math.ceil(num_synthetic / num_chunks)


def _steps_of(sampler: SamplerConfig | None, horizon: int) -> tuple[int, str]:
    """Steps of a call, and what they are."""
    if sampler is None:
        return horizon, "tokens"
    return (2 * sampler.num_steps - 1 if sampler.solver == "heun" else sampler.num_steps), "denoiser calls"


def _sample(augmentation: Augmentation, num: int) -> Callable[..., Trajectory]:
    def sample(learners: LearnerState, dataset: Dataset, prior: Any, guidance: Array, keys: PRNGKey) -> Trajectory:
        def of_seed(state: LearnerState, key: PRNGKey) -> Trajectory:
            return augmentation.sample(state, dataset, prior, guidance, key, num)

        return jax.vmap(of_seed)(learners, keys)

    return sample


def _update(trained: Trained, config: CodaConfig) -> Callable[..., Any]:
    """An update of all seeds (see `coda.make_trainer`)."""
    ratio = jnp.float32(config.mix_ratio)

    def update(learners: LearnerState, synthetic: Trajectory, dataset: Dataset, keys: PRNGKey) -> Any:
        def of_seed(state: LearnerState, synthetic: Trajectory, key: PRNGKey) -> Any:
            key_real, key_rows, key_update = jax.random.split(key, 3)
            real = sample_windows(dataset, key_real, config.batch_size, config.horizon)
            rows = jax.random.randint(key_rows, (config.batch_size,), 0, synthetic.reward.shape[0])
            batch = mix(real, jax.tree.map(lambda leaf: leaf[rows], synthetic), ratio)
            return trained.learner.update(state, batch, row_weights(config, ratio), key_update)

        return jax.vmap(of_seed)(learners, synthetic, keys)

    return update
