"""Growth of seconds and peak memory with the sizes of a run: `python -m experiments.benchmark --scaling`.

Networks are small and data random, which does not affect how cost grows. Every curve varies one size and gives the
exponent p of a least-squares fit of cost ~ size^p: 1 is linear. Exponents above `LINEAR` are marked in the table.

Memory of compiled programs is XLA's account of arguments, results and temporary buffers. Memory of reading a vault is
the peak of numpy's allocations; it leaves out the slice that is being decoded, about 8 MB.
"""

import dataclasses
import functools
import json
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.ticker import NullFormatter

from coda_jax.augmentation.base import sample_in_chunks
from coda_jax.augmentation.guided import guided
from coda_jax.data.dataset import Episodes, episodes_from_arrays, make_dataset, sample_windows
from coda_jax.data.vault import read_vault, write_vault
from coda_jax.diffusion.generator import GeneratorConfig
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.diffusion.unet import UNetConfig
from coda_jax.marl.input_scale import raw_inputs
from coda_jax.marl.learner import uniform_weights
from coda_jax.marl.maddpg_bc import MaddpgBcConfig, maddpg_bc
from coda_jax.prior import Prior, fit_transform, make_model
from coda_jax.types import PRNGKey, TaskSpec, Trajectory
from experiments.evidence.timing import best_times
from experiments.host.console import print_table, say
from experiments.host.devices import set_up_devices, visible_cores
from experiments.host.files import write_atomically
from experiments.host.plots import panels
from experiments.host.provenance import provenance

LINEAR = 1.1
"""Largest exponent that counts as linear, as single timings scatter by some percent."""
CHUNK = 64
"""Trajectories sampled together."""
EPISODE_LENGTH = 100
NUM_WINDOWS = 32
"""Windows of a mini-batch."""


@dataclasses.dataclass(frozen=True)
class ScalingSizes:
    """The sizes that are compared."""

    seeds: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    agents: tuple[int, ...] = (2, 4, 6)
    horizons: tuple[int, ...] = (10, 20, 40, 80)
    sampler_steps: tuple[int, ...] = (8, 16, 32, 64, 128)
    trajectories: tuple[int, ...] = (64, 256, 1024)
    transitions: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    part: int = 50_000
    """Steps of a vault that are read by `max_transitions`."""
    updates: int = 20
    """Learner updates of a timing."""
    width: int = 16
    """Channels of the denoiser, and width of the learner's layers."""


class Cost(NamedTuple):
    """The cost of one size."""

    size: int
    seconds: float
    bytes: int


class Curve(NamedTuple):
    """The costs of a program at several sizes."""

    program: str
    """What is measured."""
    against: str
    """The size that varies."""
    costs: tuple[Cost, ...]

    @property
    def exponents(self) -> tuple[float, float]:
        """The exponents of seconds and bytes."""
        sizes = [cost.size for cost in self.costs]
        return (
            exponent(sizes, [cost.seconds for cost in self.costs]),
            exponent(sizes, [cost.bytes for cost in self.costs]),
        )


def run_scaling(output: Path | None) -> None:
    """Measures how cost grows, on one device; writes the numbers to `output` and the figure beside it."""
    set_up_devices(1)
    curves = measure_scaling(ScalingSizes(), lambda name: say(f"measuring {name}"))
    print_table(f"growth of cost on one device of {visible_cores()} cores", scaling_rows(curves))
    if output is not None:
        record = {**provenance(num_devices=1), "load": os.getloadavg()[2], "curves": scaling_record(curves)}
        write_atomically(output, json.dumps(record, indent=1) + "\n")
        draw_scaling(output.with_suffix(".png"), curves)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent p of cost ~ size^p, by least squares on logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def measure_scaling(sizes: ScalingSizes, progress: Callable[[str], Any] = lambda name: None) -> list[Curve]:
    """Measures all curves; calls `progress` with the name of each before it starts."""
    learner, sampler = functools.partial(learner_cost, sizes), functools.partial(sampler_cost, sizes)
    whole, part = "reading a vault", f"reading {sizes.part:,} steps of a vault"
    plan: list[tuple[str, str, Sequence[int], Callable[[int], tuple[float, int]]]] = [
        ("learner updates", "seeds", sizes.seeds, lambda n: learner(num_seeds=n)),
        ("learner updates", "agents", sizes.agents, lambda n: learner(num_agents=n)),
        ("learner updates", "horizon", sizes.horizons, lambda n: learner(horizon=n)),
        ("learner updates", "transitions", sizes.transitions, lambda n: learner(num_transitions=n)),
        ("guided sampling", "agents", sizes.agents, lambda n: sampler(num_agents=n)),
        ("guided sampling", "horizon", sizes.horizons, lambda n: sampler(horizon=n)),
        ("guided sampling", "sampler steps N", sizes.sampler_steps, lambda n: sampler(num_steps=n)),
        ("guided sampling", "trajectories", sizes.trajectories, lambda n: sampler(num_trajectories=n)),
    ]
    curves = []
    for program, against, values, cost in plan:
        progress(f"{program} against {against}")
        curves.append(Curve(program, against, tuple(Cost(n, *cost(n)) for n in values)))
    progress("reading against transitions")
    readings = [reading_costs(n, sizes.part) for n in sizes.transitions]
    for program, costs in zip((whole, part), zip(*readings, strict=True), strict=True):
        costs = tuple(Cost(n, *cost) for n, cost in zip(sizes.transitions, costs, strict=True))
        curves.append(Curve(program, "transitions", costs))
    return curves


def learner_cost(
    sizes: ScalingSizes, num_seeds: int = 1, num_agents: int = 2, horizon: int = 20, num_transitions: int = 2000
) -> tuple[float, int]:
    """Seconds and bytes of learner updates on windows drawn from a dataset, the seeds vmapped on one device."""
    spec = task(num_agents)
    learner = maddpg_bc(spec, small_learner(sizes.width), raw_inputs(spec))
    dataset = make_dataset(random_episodes(spec, num_transitions), horizon)

    def train(keys: PRNGKey, dataset: Any) -> Any:
        def of_seed(key: PRNGKey) -> Any:
            key_init, key_steps = jax.random.split(key)

            def step(number: Array, state: Any) -> Any:
                key_windows, key_update = jax.random.split(jax.random.fold_in(key_steps, number))
                windows = sample_windows(dataset, key_windows, NUM_WINDOWS, horizon)
                return learner.update(state, windows, uniform_weights(NUM_WINDOWS), key_update)[0]

            return jax.lax.fori_loop(0, sizes.updates, step, learner.init(key_init))

        return jax.vmap(of_seed)(keys)

    return measured_cost(train, jax.random.split(jax.random.key(0), num_seeds), dataset)


def sampler_cost(
    sizes: ScalingSizes, num_agents: int = 2, horizon: int = 20, num_steps: int = 16, num_trajectories: int = 64
) -> tuple[float, int]:
    """Seconds and bytes of guided sampling in chunks of `CHUNK` trajectories, on one device."""
    spec = task(num_agents)
    learner = maddpg_bc(spec, small_learner(sizes.width), raw_inputs(spec))
    denoiser = GeneratorConfig(unet=UNetConfig(width=sizes.width))
    model = make_model(spec, horizon, denoiser, SamplerConfig(num_steps=num_steps))
    augmentation = guided(model, learner, 0.6)
    dataset = make_dataset(random_episodes(spec, 2000), horizon)
    key_denoiser, key_learner, key_sample = jax.random.split(jax.random.key(0), 3)
    prior = Prior(transform=fit_transform(dataset, spec), denoiser=model.generator.init(key_denoiser).params)

    def sample(key: PRNGKey, dataset: Any, prior: Prior, state: Any) -> Trajectory:
        def chunk(key: PRNGKey, num: int) -> Trajectory:
            return augmentation.sample(state, dataset, prior, jnp.float32(0.6), key, num)

        return sample_in_chunks(chunk, key, num_trajectories, CHUNK)

    return measured_cost(sample, key_sample, dataset, prior, learner.init(key_learner))


def measured_cost(function: Callable[..., Any], *arguments: Any) -> tuple[float, int]:
    """Best seconds of a compiled program, without compilation, and the bytes that XLA accounts for."""
    program = jax.jit(function).lower(*arguments).compile()
    memory = program.memory_analysis()
    assert memory is not None
    num_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return best_times(lambda: program(*arguments))[0], num_bytes


def reading_costs(num_transitions: int, part: int) -> list[tuple[float, int]]:
    """Seconds and bytes of reading a whole vault, and of reading `part` of its steps in whole episodes."""
    spec = TaskSpec(name="scaling", num_agents=2, state_dim=2, obs_dim=1, action_dim=1, episode_length=EPISODE_LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scaling.vlt", "one")
        write_vault(path, random_episodes(spec, num_transitions))
        return [reading_cost(lambda limit=limit: read_vault(path, spec, limit)) for limit in (None, part)]


def reading_cost(read: Callable[[], Any]) -> tuple[float, int]:
    """Seconds of one call, and the peak of the memory that numpy and Python allocate in it."""
    tracemalloc.start()
    try:
        seconds = seconds_of(read)
        return seconds, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def seconds_of(work: Callable[[], Any]) -> float:
    """The duration of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def task(num_agents: int) -> TaskSpec:
    """Sizes like 2HalfCheetah's; the features of an agent do not depend on the number of agents."""
    return TaskSpec(
        name="scaling",
        num_agents=num_agents,
        state_dim=17,
        obs_dim=12,
        action_dim=3,
        episode_length=EPISODE_LENGTH,
    )


def small_learner(width: int) -> MaddpgBcConfig:
    """A learner whose layers all have one width."""
    return MaddpgBcConfig(policy_linear_width=width, policy_hidden_width=width, critic_widths=(width, width))


def random_episodes(spec: TaskSpec, num_steps: int) -> Episodes:
    """Random episodes of `EPISODE_LENGTH` steps, in single precision throughout."""
    rng = np.random.default_rng(0)
    truncation = np.zeros(num_steps, np.float32)
    truncation[EPISODE_LENGTH - 1 :: EPISODE_LENGTH] = 1.0

    def uniform(*shape: int) -> np.ndarray:
        return rng.random((num_steps, *shape), np.float32)

    return episodes_from_arrays(
        state=uniform(spec.state_dim),
        obs=uniform(spec.num_agents, spec.obs_dim),
        action=uniform(spec.num_agents, spec.action_dim),
        reward=uniform(),
        terminal=np.zeros(num_steps, np.float32),
        truncation=truncation,
    )


def scaling_rows(curves: Sequence[Curve]) -> list[dict[str, str]]:
    """The table: a row per curve, exponents above `LINEAR` marked by an asterisk."""

    def marked(value: float) -> str:
        return f"{value:.2f}{'*' if value > LINEAR else ''}"

    return [
        {
            "program": curve.program,
            "against": curve.against,
            "sizes": f"{curve.costs[0].size:,}-{curve.costs[-1].size:,}",
            "seconds": f"{curve.costs[0].seconds:.3g}-{curve.costs[-1].seconds:.3g}",
            "exponent": marked(curve.exponents[0]),
            "MB": f"{curve.costs[0].bytes / 1e6:.3g}-{curve.costs[-1].bytes / 1e6:.3g}",
            "exponent of MB": marked(curve.exponents[1]),
        }
        for curve in curves
    ]


def draw_scaling(path: Path, curves: Sequence[Curve]) -> None:
    """Plots seconds and megabytes against each size, both relative to the smallest size, with a linear reference."""
    sizes = list(dict.fromkeys(curve.against for curve in curves))
    with panels(path, 2, len(sizes), (2.6 * len(sizes), 5.2)) as grid:
        for column, against in enumerate(sizes):
            shown = [curve for curve in curves if curve.against == against]
            for axes, field in zip(grid[:, column], ("seconds", "bytes"), strict=True):
                for curve in shown:
                    values = np.array([getattr(cost, field) for cost in curve.costs])
                    axes.loglog([c.size for c in curve.costs], values / values[0], "o-", ms=3, label=curve.program)
                ends = np.array([shown[0].costs[0].size, shown[0].costs[-1].size])
                axes.loglog(ends, ends / ends[0], "--", color="0.5", label="linear")
                ticks = [cost.size for cost in shown[0].costs]
                axes.set_xticks(ticks, [f"{tick:,}" if tick < 10_000 else f"{tick:.0e}" for tick in ticks])
                axes.xaxis.set_minor_formatter(NullFormatter())  # they would overlap
            grid[0, column].set_title(against)
            grid[0, column].legend(fontsize=6)
            grid[1, column].set_xlabel(against)
        grid[0, 0].set_ylabel("seconds, relative")
        grid[1, 0].set_ylabel("peak memory, relative")


def scaling_record(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """The curves in terms of JSON."""
    return [
        {
            "program": curve.program,
            "against": curve.against,
            "costs": [cost._asdict() for cost in curve.costs],
            "exponents": dict(zip(("seconds", "bytes"), curve.exponents, strict=True)),
        }
        for curve in curves
    ]
