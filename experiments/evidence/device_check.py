"""The accelerator beside the CPU: `python -m experiments.benchmark --check-device`.

Programs of the main job are run on both in one process, from the same inputs, and their results compared. Then the
accelerator's speed is measured by the number of seeds and environments. Networks compute at the precision `highest`,
float32 on every device; physics and evaluation always do.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from coda_jax import transforms
from coda_jax.augmentation.guided import guided
from coda_jax.backend import full_precision
from coda_jax.coda import make_trainer
from coda_jax.data.dataset import Dataset, sample_windows
from coda_jax.envs import mamujoco
from coda_jax.envs.base import Environment, EnvState
from coda_jax.envs.rollout import rollout
from coda_jax.marl.input_scale import standardised_inputs
from coda_jax.marl.learner import Learner, LearnerState, uniform_weights
from coda_jax.marl.maddpg_bc import maddpg_bc
from coda_jax.presets import PRESETS, Preset
from coda_jax.prior import Prior, TrajectoryModel, encode, fit_updates, make_model
from coda_jax.schedule import CodaConfig
from coda_jax.types import Params, PRNGKey, Trajectory
from experiments.evidence.random_inputs import HORIZON, random_dataset, random_prior
from experiments.evidence.timing import Work, best_times
from experiments.host.cache import enable_compilation_cache
from experiments.host.console import print_table, say
from experiments.host.errors import UserError
from experiments.host.files import write_atomically
from experiments.host.provenance import provenance

PRECISION = "highest"
"""Of the networks, in comparisons and timings."""


@dataclasses.dataclass(frozen=True)
class CheckSizes:
    """Sizes of the comparisons, and of the timings, which stop after `seconds` of the whole command."""

    preset: Preset = PRESETS["laptop"]
    environments: int = 16
    trajectories: int = 64
    updates: int = 20
    episode_length: int = 10
    seeds: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    batches: tuple[int, ...] = (128, 4096)
    rollouts: tuple[int, ...] = (64, 4096)
    rollout_steps: int = 20
    seconds: float = 420.0


class Program(NamedTuple):
    """A program, its inputs, and by how much its results may differ between devices.

    function:  jitted.
    tolerance: the largest difference of two arrays, relative to the largest magnitude in the CPU's.
    compared:  the part of the results that counts.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    tolerance: float
    compared: Callable[[Any], Any] = lambda results: results


class Comparison(NamedTuple):
    """The result of one program on two devices: its largest difference, see `Program.tolerance`."""

    program: str
    where: str
    difference: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= self.tolerance


class Throughput(NamedTuple):
    """A rate per second; `peak_bytes` is the most memory in use on the device since the start, if it is known."""

    what: str
    size: str
    rate: float
    peak_bytes: int | None


def run_device_check(output: Path | None) -> None:
    """Checks jax's first accelerator, prints the tables and writes the numbers to `output`.

    Raises:
        UserError: there is no accelerator.
        SystemExit: status 1, the results of a program differ.
    """
    accelerator = jax.devices()[0]
    if accelerator.platform == "cpu":
        raise UserError("--check-device found no accelerator; it compares one with the CPU (see docs/accelerators.md)")
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError as error:
        raise UserError("--check-device needs jax's CPU too; unset JAX_PLATFORMS, or add cpu to it") from error
    enable_compilation_cache()
    check_device(mamujoco.make("2halfcheetah"), CheckSizes(), accelerator, cpu, output)


def check_device(env: Environment, sizes: CheckSizes, accelerator: Any, cpu: Any, output: Path | None) -> None:
    """Compares two devices, measures the first, prints and writes.

    Raises:
        SystemExit: status 1, the results of a program differ.
    """
    start = time.monotonic()
    comparisons = [compare(program, accelerator, cpu) for program in _told(programs(env, sizes, cpu))]
    title = f"{accelerator.device_kind} and CPU: largest difference, relative to the largest magnitude"
    print_table(
        title,
        [
            {
                "program": each.program,
                "difference": f"{each.difference:.1e}",
                "tolerance": f"{each.tolerance:.0e}",
                "agrees": "yes" if each.agrees else f"no: {each.where}",
            }
            for each in comparisons
        ],
    )
    throughputs = measure(env, sizes, accelerator, start + sizes.seconds)
    if throughputs:
        print_table(
            f"{accelerator.device_kind}: rates, and the most memory in use until then",
            [
                {
                    "what": each.what,
                    "size": each.size,
                    "a second": f"{each.rate:,.0f}",
                    "peak GB": "" if each.peak_bytes is None else f"{each.peak_bytes / 1e9:.2f}",
                }
                for each in throughputs
            ],
        )
    if output is not None:
        record = {
            **provenance(num_devices=1),
            "checked": accelerator.device_kind,
            "precision": PRECISION,
            "comparisons": [{**each._asdict(), "agrees": each.agrees} for each in comparisons],
            "throughputs": [each._asdict() for each in throughputs],
        }
        write_atomically(output, json.dumps(record, indent=1) + "\n")
    different = [each.program for each in comparisons if not each.agrees]
    if different:
        raise SystemExit(f"the accelerator and the CPU differ by more than the tolerance in: {', '.join(different)}")


def _told(programs: Iterator[Program]) -> Iterator[Program]:
    for program in programs:
        say(f"comparing: {program.name}")
        yield program


def compare(program: Program, accelerator: Any, cpu: Any) -> Comparison:
    """Runs a program on both devices, networks at the precision `highest`, and compares all its results."""
    ours, theirs = (
        program.compared(run_on(device, program.function, *program.arguments)) for device in (accelerator, cpu)
    )
    differences = {
        jax.tree_util.keystr(path): difference(np.asarray(mine), np.asarray(other))
        for (path, mine), other in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    }
    where = max(differences, key=lambda name: differences[name])
    return Comparison(program.name, where, differences[where], program.tolerance)


def run_on(device: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """The results of a jitted function on a device, as numpy arrays; keys become their data."""
    with jax.default_matmul_precision(PRECISION), jax.default_device(device):
        results = function(*jax.device_put(arguments, device))
        return jax.device_get(jax.tree.map(_without_key, results))


def _without_key(leaf: Array) -> Array:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference relative to the largest magnitude; infinite for other integers, truths or NaNs."""
    if not np.issubdtype(theirs.dtype, np.floating):
        return 0.0 if np.array_equal(ours, theirs) else np.inf
    finite = np.isfinite(theirs)
    if not np.array_equal(np.isfinite(ours), finite):
        return np.inf
    ours, theirs = ours[finite], theirs[finite]
    return float(np.abs(ours - theirs).max(initial=0.0) / max(np.abs(theirs).max(initial=0.0), 1e-6))


class _Parts(NamedTuple):
    """What the programs are made of."""

    learner: Learner
    dataset: Dataset
    model: TrajectoryModel
    prior: Prior


def _parts(env: Environment, preset: Preset) -> _Parts:
    dataset = random_dataset(env)
    model = make_model(env.spec, HORIZON, preset.generator, preset.sampler)
    prior = random_prior(model, dataset)

    def moved(weights: Params) -> Params:
        """Other weights: the last layer begins with zeros, and would hide the others."""
        flat, unflatten = ravel_pytree(weights)
        return unflatten(flat + 0.05 * jax.random.normal(jax.random.key(1), flat.shape))

    prior = dataclasses.replace(prior, denoiser=jax.jit(moved)(prior.denoiser))
    return _Parts(maddpg_bc(env.spec, preset.learner, standardised_inputs(dataset.steps)), dataset, model, prior)


def programs(env: Environment, sizes: CheckSizes, cpu: Any) -> Iterator[Program]:
    """The programs that are compared, with inputs that the CPU computed.

    Adam divides by the size of past gradients, so updates are compared after some that the CPU made.
    """
    with jax.default_device(cpu):
        learner, dataset, model, prior = _parts(env, sizes.preset)
        keys = list(jax.random.split(jax.random.key(2), 8))
        z = jax.random.normal(keys[0], (sizes.trajectories, HORIZON, transforms.num_channels(env.spec)))
    yield _physics_step(env, sizes.environments, cpu)
    yield Program("transform, there and back", jax.jit(_transformed), (prior, dataset, keys[1]), 1e-4)
    denoise = jax.jit(model.generator.denoise)
    yield Program("denoiser call", denoise, (prior.denoiser, z, jnp.float32(1.0)), 1e-4)

    def fit(state: Any, dataset: Dataset, z: Array, key: PRNGKey, num: int = 1) -> Any:
        return fit_updates(model.generator, state, dataset, z, key, num)

    def fit_start(dataset: Dataset, z: Array, key: PRNGKey) -> Any:
        return fit(model.generator.init(key), dataset, z, key, sizes.updates)[0]

    steps = jax.random.normal(keys[2], (dataset.steps.reward.shape[0], z.shape[-1]))
    fitted = run_on(cpu, jax.jit(fit_start), dataset, steps, keys[3])
    yield Program("denoiser update", jax.jit(fit), (fitted, dataset, steps, keys[4]), 1e-3)

    learned = run_on(cpu, jax.jit(_updates(learner, sizes.updates)), dataset, keys[5])
    sample = jax.jit(_sample(model, learner, sizes.trajectories))
    yield Program("sampler run", sample, (learned, dataset, prior, keys[6]), 1e-2)

    def update(state: LearnerState, dataset: Dataset, key: PRNGKey) -> Any:
        windows = sample_windows(dataset, key, 32, HORIZON)
        return learner.update(state, windows, uniform_weights(32), jax.random.fold_in(key, 1))

    yield Program("learner update", jax.jit(update), (learned, dataset, keys[7]), 1e-3)
    yield _round(env, sizes, learner, model, learned, dataset, prior)


def _physics_step(env: Environment, num: int, cpu: Any) -> Program:
    """A step of environments after some random steps, so that there are contacts."""
    step = jax.jit(full_precision(jax.vmap(env.step)))
    shape = (num, env.spec.num_agents, env.spec.action_dim)
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (11, *shape)).astype(np.float32)
    state = run_on(cpu, jax.jit(jax.vmap(env.reset)), jax.random.split(jax.random.key(3), num))
    for action in actions[:-1]:
        state = run_on(cpu, step, state, action)
    return Program("physics step", step, (state, actions[-1]), 1e-3, _without_simulator)


def _without_simulator(state: EnvState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in ("state", "obs", "reward", "terminal", "truncated")}


def _transformed(prior: Prior, dataset: Dataset, key: PRNGKey) -> Any:
    z = encode(prior.transform, dataset, key)
    return {"forward": z, "inverse": transforms.inverse(prior.transform, z)}


def _updates(learner: Learner, num: int) -> Callable[[Dataset, PRNGKey], LearnerState]:
    """A learner's state after `num` updates."""

    def train(dataset: Dataset, key: PRNGKey) -> LearnerState:
        def step(state: LearnerState, key: PRNGKey) -> tuple[LearnerState, None]:
            key_windows, key_update = jax.random.split(key)
            windows = sample_windows(dataset, key_windows, 32, HORIZON)
            return learner.update(state, windows, uniform_weights(32), key_update)[0], None

        key_init, key_steps = jax.random.split(key)
        return jax.lax.scan(step, learner.init(key_init), jax.random.split(key_steps, num))[0]

    return train


def _sample(model: TrajectoryModel, learner: Learner, num: int) -> Callable[..., Trajectory]:
    augmentation = guided(model, learner, 0.6)

    def sample(state: LearnerState, dataset: Dataset, prior: Prior, key: PRNGKey) -> Trajectory:
        return augmentation.sample(state, dataset, prior, jnp.float32(0.6), key, num)

    return sample


def _round(
    env: Environment,
    sizes: CheckSizes,
    learner: Learner,
    model: TrajectoryModel,
    learned: LearnerState,
    dataset: Dataset,
    prior: Prior,
) -> Program:
    """A round of generation, updates and evaluation, its episodes cut short: long ones are chaotic."""
    short = env._replace(spec=dataclasses.replace(env.spec, episode_length=sizes.episode_length))
    num = sizes.trajectories
    config = CodaConfig(
        horizon=HORIZON,
        epochs_per_round=1,
        updates_per_epoch=sizes.updates,
        num_rounds=2,
        num_trajectories=num,
        chunk_size=num,
        evaluation_episodes=2,
        reference_trajectories=0,
    )
    trainer = make_trainer(short, learner, guided(model, learner, 0.6), config)
    state = dataclasses.replace(jax.jit(trainer.init)(jax.random.key(5)), learner=learned)
    return Program("whole round", jax.jit(trainer.round), (state, dataset, prior, trainer.schedule[-1].plan), 1e-2)


def measure(env: Environment, sizes: CheckSizes, device: Any, deadline: float) -> list[Throughput]:
    """The rates of a device, in the order of `_works`; those that would begin after the deadline are left out."""
    rates = []
    with jax.default_matmul_precision(PRECISION), jax.default_device(device):
        for what, size, count, work in _works(env, sizes):
            if time.monotonic() > deadline:
                say(f"out of time: no {what}, {size}")
                continue
            say(f"measuring: {what}, {size}")
            (seconds,) = best_times(work)
            statistics = device.memory_stats() or {}
            rates.append(Throughput(what, size, count / seconds, statistics.get("peak_bytes_in_use")))
    return rates


def _works(env: Environment, sizes: CheckSizes) -> Iterator[tuple[str, str, int, Work]]:
    """What is measured: name, size, how many are done by a call, and the call."""
    learner, dataset, model, prior = _parts(env, sizes.preset)
    sample, updates = _sample(model, learner, sizes.trajectories), _updates(learner, sizes.updates)
    for num in sizes.rollouts:
        work = jax.jit(lambda key, num=num: _random_rollout(env, num, sizes.rollout_steps, key))
        yield "physics steps", f"{num:,} env.", num * sizes.rollout_steps, lambda f=work: f(jax.random.key(0))
    channels = transforms.num_channels(env.spec)
    for num in sizes.batches:
        z = jax.random.normal(jax.random.key(0), (num, HORIZON, channels))
        work = jax.jit(model.generator.update)
        state = model.generator.init(jax.random.key(0))
        yield "windows of the fit", f"batch {num:,}", num, lambda f=work, s=state, z=z: f(s, z, jax.random.key(1))
    for num in sizes.seeds:
        keys, size = jax.random.split(jax.random.key(0), num), f"{num} seed{'s' if num > 1 else ''}"
        work = jax.jit(jax.vmap(updates, in_axes=(None, 0)))
        yield "learner updates", size, num * sizes.updates, lambda f=work, k=keys: f(dataset, k)
        states = jax.jit(jax.vmap(learner.init))(keys)
        work = jax.jit(jax.vmap(sample, in_axes=(0, None, None, 0)))
        yield "trajectories", size, num * sizes.trajectories, lambda f=work, s=states, k=keys: f(s, dataset, prior, k)


def _random_rollout(env: Environment, num: int, num_steps: int, key: PRNGKey) -> Array:
    """The rewards of random actions."""
    spec = env.spec

    def act(obs: Array, carry: tuple[()], key: PRNGKey) -> tuple[Array, tuple[()]]:
        return jax.random.uniform(key, (num, spec.num_agents, spec.action_dim), minval=-1.0), carry

    return full_precision(rollout)(env, act, (), key, num, num_steps).steps.reward
