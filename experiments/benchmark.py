"""Benchmark of the components on this machine: `python -m experiments.benchmark`.

All sizes are those of 2HalfCheetah; data and weights are random, which does not affect the run time. Programs that are
compared are timed alternately, and the best time of each counts. `--output` writes the numbers. `--gate` compares them
with the committed ones, relative to a *yardstick*: the rate of numpy's matrix products in the same run. This ratio
depends much less on the machine than a rate does, and the yardstick is independent of the code of this project.
"""

import contextlib
import dataclasses
import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from coda_jax import transforms
from coda_jax.augmentation.base import sample_in_chunks
from coda_jax.augmentation.guided import guided
from coda_jax.augmentation.unconditional import unconditional
from coda_jax.coda import across_seeds, make_trainer
from coda_jax.data.dataset import Dataset, sample_windows
from coda_jax.diffusion.generator import GeneratorConfig, fit_chunk, make_generator
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.diffusion.unet import UNetConfig
from coda_jax.envs import mamujoco
from coda_jax.envs.base import Environment
from coda_jax.envs.rollout import rollout
from coda_jax.marl.input_scale import raw_inputs, standardised_inputs
from coda_jax.marl.learner import Learner, LearnerState, uniform_weights
from coda_jax.marl.maddpg_bc import maddpg_bc
from coda_jax.prior import Prior, make_model
from coda_jax.ranges import Ranged, RangeError
from coda_jax.schedule import CodaConfig
from coda_jax.types import PRNGKey, Trajectory
from experiments.evidence.benchmark_gate import check_gate, read_baseline, yardstick
from experiments.evidence.device_check import run_device_check
from experiments.evidence.random_inputs import HORIZON, random_dataset, random_prior
from experiments.evidence.scaling import run_scaling
from experiments.evidence.timing import Work, best_times
from experiments.host.cache import enable_compilation_cache
from experiments.host.console import phase, print_table
from experiments.host.devices import largest_divisor, set_up_devices, visible_cores
from experiments.host.errors import UserError, one_line_errors, parse_command
from experiments.host.files import write_atomically
from experiments.pipeline.settings import PRESETS

with contextlib.redirect_stderr(io.StringIO()):  # it warns about robots that are not used here
    from gymnasium_robotics import mamujoco_v1

SEEDS = (1, 2, 4, 16)
FLOORS = {"guided trajectories, width 16, N 128": 200, "learner updates, 4 seeds": 110, "MJX environment steps": 8000}
"""Minimum rates per second on two cores."""

FEW_STEPS = SamplerConfig(num_steps=15, sigma_min=0.05, sigma_max=40.0, solver="dpm++")
"""A sampler of few steps, to compare the laptop preset's with."""


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(Ranged):
    """Measures the speed of generation, fit, learning, simulation and compilation."""

    output: Path | None = None
    """JSON file for the numbers."""
    gate: bool = False
    """Exit with status 1 if the ratio of a speed to the yardstick is lower than the committed ratio by more than the
    tolerance."""
    tolerance: Annotated[float, Interval(ge=0.0, lt=1.0)] = 0.3
    """Accepted relative decrease of a ratio."""
    check_device: bool = False
    """Compare the programs of the main job on the accelerator with the same on the CPU, and measure its speed, instead;
    about eight minutes on a GPU. Exits with status 1 if they differ by more than a tolerance, 2 without accelerator."""
    scaling: bool = False
    """Measure how seconds and peak memory grow with the sizes of a run instead; `--output` writes a figure beside the
    numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate and (self.scaling or self.check_device):
            raise RangeError("gate", self.gate, "there are no committed ratios of --scaling or --check-device")
        if self.scaling and self.check_device:
            raise RangeError("scaling", self.scaling, "give either --scaling or --check-device")


@dataclasses.dataclass(frozen=True)
class Figure:
    """One row of the table."""

    what: str
    """The measured quantity."""
    value: float
    """Rate per second, or seconds if `is_duration`."""
    ratio: float | None = None
    """Ratio of the rate to that of `against`."""
    against: str = ""
    """The quantity of comparison."""
    is_duration: bool = False
    """Whether `value` is a duration (lower is better)."""

    @property
    def speed(self) -> float:
        """Rate per second, also for durations."""
        return 1.0 / self.value if self.is_duration else self.value


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        config = parse_command(BenchmarkConfig, args)
        if config.output is not None and not config.output.parent.is_dir():
            raise UserError(f"--output {config.output} is in a folder that does not exist; create it")
        if config.scaling:
            run_scaling(config.output)
            return
        if config.check_device:
            run_device_check(config.output)
            return
        all_devices = set_up_devices(max(SEEDS))
        baseline = read_baseline(all_devices.size) if config.gate else {}
        figures = measure(all_devices)
        speeds = relative_speeds(figures, yardstick())
        print_table(
            f"2halfcheetah on {jax.device_count()} devices of {visible_cores()} cores, {jax.default_backend()}",
            [
                {
                    "quantity": figure.what,
                    "a second": f"{figure.value:,.1f}" if figure.value < 100 else f"{figure.value:,.0f}",
                    "floor": f"{FLOORS[figure.what]:,}" if figure.what in FLOORS else "",
                    "ratio": "" if figure.ratio is None else f"{figure.ratio:.2f}",
                    "to": figure.against,
                }
                for figure in figures
            ],
        )
        if config.output is not None:
            record = {
                "devices": jax.device_count(),
                "figures": [dataclasses.asdict(figure) for figure in figures],
                "relative_speeds": speeds,
            }
            write_atomically(config.output, json.dumps(record, indent=1) + "\n")
        if config.gate:
            check_gate(speeds, baseline, config.tolerance)


def relative_speeds(figures: Sequence[Figure], yardstick: float) -> dict[str, float]:
    """The speed of each figure relative to the yardstick."""
    return {figure.what: figure.speed / yardstick for figure in figures}


def measure(all_devices: Mesh) -> list[Figure]:
    """Measures all figures."""
    one_device = first_devices(all_devices, 1)
    enable_compilation_cache()
    env = mamujoco.make("2halfcheetah")
    dataset = random_dataset(env)
    learner = maddpg_bc(env.spec, PRESETS["laptop"].learner, standardised_inputs(dataset.steps))
    denoiser, sampler = PRESETS["laptop"].denoiser, PRESETS["laptop"].diffusion
    table_5 = PRESETS["paper"].learner
    parts = {
        "guided sampling": lambda: generation(env, learner, dataset, denoiser, sampler, one_device, all_devices),
        "the fit": lambda: fitting(env, denoiser, one_device, all_devices),
        "learning": lambda: learning(maddpg_bc(env.spec, table_5, raw_inputs(env.spec)), learner, dataset, all_devices),
        "simulation": lambda: simulation(env, one_device, all_devices),
        "compilation": lambda: compilation(env, learner, dataset, denoiser, sampler, all_devices),
    }
    figures: list[Figure] = []
    for name, part in parts.items():
        with phase(f"measuring {name}"):
            figures += part()
    return figures


def first_devices(mesh: Mesh, num: int) -> Mesh:
    """A mesh of the first devices of a mesh."""
    return jax.make_mesh((num,), ("seed",), devices=mesh.devices[:num].tolist(), axis_types=mesh.axis_types)


def sharded(function: Callable[..., Any], mesh: Mesh, *arguments: Any) -> Work:
    """`function(key, *arguments)` on every device, each with its own key."""
    by_device, shared = PartitionSpec("seed"), PartitionSpec()
    program = jax.jit(
        jax.shard_map(
            lambda keys, *arguments: jax.tree.map(lambda leaf: leaf[None], function(keys[0], *arguments)),
            mesh=mesh,
            in_specs=(by_device, *[shared] * len(arguments)),
            out_specs=by_device,
            check_vma=False,
        )
    )
    keys = jax.device_put(jax.random.split(jax.random.key(0), mesh.size), NamedSharding(mesh, by_device))
    arguments = jax.device_put(arguments, NamedSharding(mesh, shared))
    return lambda: program(keys, *arguments)


def generation(
    env: Environment,
    learner: Learner,
    dataset: Dataset,
    denoiser: GeneratorConfig,
    sampler: SamplerConfig,
    one_device: Mesh,
    all_devices: Mesh,
) -> list[Figure]:
    """Trajectories sampled toward a policy: at the sizes of Table 3, and at the laptop preset's."""
    chunk_size, total = PRESETS["laptop"].training.chunk_size, 1000
    state = learner.init(jax.random.key(1))

    def work(denoiser: GeneratorConfig, sampler: SamplerConfig, mesh: Mesh, is_guided: bool = True) -> Work:
        model = make_model(env.spec, HORIZON, denoiser, sampler)
        augmentation = guided(model, learner, 0.6) if is_guided else unconditional(model)

        def sample(key: PRNGKey, dataset: Dataset, prior: Prior, state: LearnerState) -> Trajectory:
            def sample_chunk(key: PRNGKey, num: int) -> Trajectory:
                return augmentation.sample(state, dataset, prior, jnp.float32(0.6), key, num)

            return sample_in_chunks(sample_chunk, key, -(-total // mesh.size), chunk_size)

        return sharded(sample, mesh, dataset, random_prior(model, dataset), state)

    table_3 = dataclasses.replace(denoiser, unet=UNetConfig(width=16))
    many_steps = dataclasses.replace(sampler, num_steps=128)
    slow, slow_alone, fast, unguided, few = best_times(
        work(table_3, many_steps, all_devices),
        work(table_3, many_steps, one_device),
        work(denoiser, sampler, all_devices),
        work(denoiser, sampler, all_devices, is_guided=False),
        work(denoiser, FEW_STEPS, all_devices),
    )
    sizes = f"width {denoiser.unet.width}, N {sampler.num_steps}"
    return [
        Figure("guided trajectories, width 16, N 128", total / slow, slow_alone / slow, "one device"),
        Figure(f"guided trajectories, {sizes}", total / fast, slow / fast, "width 16, N 128"),
        Figure(f"unguided trajectories, {sizes}", total / unguided, fast / unguided, "guided"),
        Figure(f"guided trajectories, DPM-Solver++, N {FEW_STEPS.num_steps}", total / few, fast / few, sizes),
    ]


def fitting(env: Environment, denoiser: GeneratorConfig, one_device: Mesh, all_devices: Mesh) -> list[Figure]:
    """Optimiser steps of the laptop preset's denoiser with 256 windows per step, and whole fits of two presets."""
    num_updates, batch_size, num_channels = 20, 256, transforms.num_channels(env.spec)

    def work(config: GeneratorConfig, mesh: Mesh) -> Work:
        generator = make_generator(config, num_channels, HORIZON)

        @jax.jit
        def fit(state: Any, z: Array, key: PRNGKey) -> Any:
            def sample_batch(key: PRNGKey) -> tuple[Array, None]:
                batch = z[jax.random.permutation(key, config.batch_size)]
                return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("seed"))), None

            return fit_chunk(generator, state, sample_batch, key, num_updates)

        z = jax.random.normal(jax.random.key(0), (config.batch_size, HORIZON, num_channels))
        arguments = jax.device_put(
            (generator.init(jax.random.key(1)), z, jax.random.key(2)), NamedSharding(mesh, PartitionSpec())
        )
        return lambda: fit(*arguments)

    large, tuned = dataclasses.replace(denoiser, batch_size=batch_size), PRESETS["tuned"].denoiser
    all_seconds, one_seconds, *parts = best_times(
        work(large, all_devices), work(large, one_device), work(denoiser, all_devices), work(tuned, all_devices)
    )
    whole, quick = (fit.num_updates * part / num_updates for fit, part in zip((denoiser, tuned), parts, strict=True))
    what = f"denoiser fit steps, width {denoiser.unet.width}, batch {batch_size}"
    return [
        Figure(what, num_updates / all_seconds, one_seconds / all_seconds, "one device"),
        Figure("seconds of a denoiser fit, laptop preset", whole, is_duration=True),
        Figure("seconds of a denoiser fit, tuned preset", quick, whole / quick, "laptop preset", is_duration=True),
    ]


def learning(learner: Learner, laptop_learner: Learner, dataset: Dataset, all_devices: Mesh) -> list[Figure]:
    """Updates of the learners of Table 5 and of the laptop preset, over all seeds, with 32 windows of 20 steps each."""
    num_updates, batch_size = 50, CodaConfig().batch_size

    def work(learner: Learner, num_seeds: int) -> Work:
        mesh = first_devices(all_devices, largest_divisor(num_seeds, all_devices.size))

        def train(key: PRNGKey, dataset: Dataset) -> Any:
            def of_seed(key: PRNGKey) -> Any:
                def step(state: Any, key: PRNGKey) -> tuple[Any, None]:
                    key_windows, key_update = jax.random.split(key)
                    windows = sample_windows(dataset, key_windows, batch_size, HORIZON)
                    return learner.update(state, windows, uniform_weights(batch_size), key_update)[0], None

                key_init, key_steps = jax.random.split(key)
                return jax.lax.scan(step, learner.init(key_init), jax.random.split(key_steps, num_updates))[0]

            return jax.vmap(of_seed)(jax.random.split(key, num_seeds // mesh.size))

        return sharded(train, mesh, dataset)

    runs = [*((learner, n) for n in SEEDS), (laptop_learner, 4)]
    times = best_times(*(work(*run) for run in runs))
    *rates, laptop_rate = (n * num_updates / seconds for (_, n), seconds in zip(runs, times, strict=True))
    return [
        Figure("learner updates, 1 seed", rates[0]),
        *(
            Figure(f"learner updates, {n} seeds", rate, rate / rates[0], "1 seed")
            for n, rate in zip(SEEDS[1:], rates[1:], strict=True)
        ),
        Figure("learner updates, 4 seeds, laptop preset", laptop_rate, laptop_rate / rates[SEEDS.index(4)], "Table 5"),
    ]


def simulation(env: Environment, one_device: Mesh, all_devices: Mesh) -> list[Figure]:
    """Environment steps with random actions: 16 environments per device in MJX, one of gymnasium-robotics in C."""
    num_steps, num_envs = 200, 16
    spec = env.spec

    def act(obs: Array, carry: tuple[()], key: PRNGKey) -> tuple[Array, tuple[()]]:
        return jax.random.uniform(key, (num_envs, spec.num_agents, spec.action_dim), minval=-1.0), carry

    def work(mesh: Mesh) -> Work:
        return sharded(lambda key: rollout(env, act, (), key, num_envs, num_steps).steps.reward, mesh)

    c = mamujoco_v1.parallel_env("HalfCheetah", "2x3", agent_obsk=1)
    c.reset(seed=0)
    rng = np.random.default_rng(0)
    actions = [{agent: rng.uniform(-1, 1, 3).astype(np.float32) for agent in c.agents} for _ in range(num_steps)]

    def in_c() -> None:
        for action in actions:
            c.step(action)

    all_seconds, one_seconds, c_seconds = best_times(work(all_devices), work(one_device), in_c)
    rate, c_rate = all_devices.size * num_envs * num_steps / all_seconds, num_steps / c_seconds
    return [
        Figure("MJX environment steps", rate, rate / c_rate, "gymnasium-robotics in C, one process"),
        Figure("MJX environment steps, all devices", rate, all_devices.size * one_seconds / all_seconds, "one device"),
        Figure("gymnasium-robotics' steps in C, one process", c_rate),
    ]


def compilation(
    env: Environment,
    learner: Learner,
    dataset: Dataset,
    denoiser: GeneratorConfig,
    sampler: SamplerConfig,
    all_devices: Mesh,
) -> list[Figure]:
    """Seconds to trace and compile the fused round, with the compilation cache empty and filled."""
    model = make_model(env.spec, HORIZON, denoiser, sampler)
    augmentation = guided(model, learner, 0.6)
    shared = NamedSharding(all_devices, PartitionSpec())
    data, prior = jax.device_put((dataset, random_prior(model, dataset)), shared)

    def compile_round() -> float:
        jax.clear_caches()
        start = time.perf_counter()
        program = across_seeds(make_trainer(env, learner, augmentation, PRESETS["laptop"].training), all_devices)
        keys = jax.random.split(jax.random.key(0), all_devices.size)
        keys = jax.device_put(keys, NamedSharding(all_devices, PartitionSpec("seed")))
        plan = jax.device_put(program.schedule[-1].plan, shared)
        jax.jit(program.round).lower(jax.eval_shape(program.init, keys), data, prior, plan).compile()
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()  # jax reads the name of the folder only once
        cold, warm = compile_round(), compile_round()
    return [
        Figure("seconds to compile a round, cache empty", cold, is_duration=True),
        Figure("seconds to compile a round, cache filled", warm, cold / warm, "empty", is_duration=True),
    ]


if __name__ == "__main__":
    main()
