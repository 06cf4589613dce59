"""How fast the parts are on this machine: `python -m experiments.benchmark`.

Each figure is the best of three runs on all devices of the `seed` mesh, at the sizes of 2HalfCheetah;
data and weights are random, which does not change the work. `experiments.conformance` compares MJX with C MuJoCo.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from coda_jax import transforms
from coda_jax.coda import CodaConfig, Plan, Prior, across_seeds, coda
from coda_jax.data.dataset import episodes_from_arrays, make_dataset
from coda_jax.diffusion.generator import GeneratorConfig, make_generator
from coda_jax.diffusion.samplers import SamplerConfig
from coda_jax.envs import mamujoco
from coda_jax.marl.maddpg_bc import MaddpgBcConfig, maddpg_bc
from experiments.cache import enable_compilation_cache
from experiments.console import phase, print_table
from experiments.devices import set_up_devices
from experiments.errors import one_line_errors, parse_command

REPEATS = 3


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """Times generation, learning and evaluation as the main job runs them, a phase at a time."""

    num_seeds: int = 4
    """Seeds trained together."""
    num_updates: int = 200
    """Learner updates in a timed run."""
    diffusion: SamplerConfig = dataclasses.field(default_factory=lambda: SamplerConfig(num_steps=32))
    """Sampling (Algorithm 1)."""
    denoiser: GeneratorConfig = dataclasses.field(default_factory=GeneratorConfig)
    """The diffusion model."""
    training: CodaConfig = dataclasses.field(default_factory=lambda: CodaConfig(num_trajectories=256))
    """Algorithm 2."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        run(parse_command(BenchmarkConfig, args))


def run(config: BenchmarkConfig) -> None:
    """Measures, and prints a table."""
    mesh = set_up_devices(config.num_seeds)
    enable_compilation_cache()
    env = mamujoco.make("2halfcheetah")
    spec, training = env.spec, config.training
    rng = np.random.default_rng(0)
    steps = 2000
    dataset = make_dataset(
        episodes_from_arrays(
            state=rng.normal(size=(steps, spec.state_dim)),
            obs=rng.normal(size=(steps, spec.num_agents, spec.obs_dim)),
            action=rng.uniform(-1, 1, size=(steps, spec.num_agents, spec.action_dim)),
            reward=rng.normal(size=steps),
            terminal=np.zeros(steps),
            truncation=np.zeros(steps),
        ),
        training.horizon,
    )
    generator = make_generator(config.denoiser, transforms.num_channels(spec), training.horizon)
    single = coda(
        env,
        maddpg_bc(spec, MaddpgBcConfig()),
        generator,
        training,
        config.diffusion,
        config.num_seeds // mesh.size,
    )
    program = across_seeds(single, mesh)
    by_seed, shared = NamedSharding(mesh, PartitionSpec("seed")), NamedSharding(mesh, PartitionSpec())
    prior = jax.device_put(
        Prior(
            dataset=dataset,
            transform=transforms.fit(transforms.pack(dataset.steps)),
            denoiser=generator.init(jax.random.key(0)).params,
        ),
        shared,
    )

    def plan(generate: bool = False, num_updates: int = 0, evaluate: bool = False) -> Plan:
        return jax.device_put(
            Plan(
                generate=jnp.bool_(generate),
                num_updates=jnp.int32(num_updates),
                evaluate=jnp.bool_(evaluate),
                guidance=jnp.float32(0.6),
                mix_ratio=jnp.float32(0.5),
            ),
            shared,
        )

    with phase("compiling"):
        seeds = jax.device_put(jax.vmap(jax.random.key)(np.arange(config.num_seeds)), by_seed)
        state = jax.jit(program.init)(seeds)
        round_ = jax.jit(program.round).lower(state, prior, plan()).compile()

    def seconds(plan: Plan) -> float:
        return min(_timed(lambda: round_(state, prior, plan)) for _ in range(REPEATS))

    with phase("measuring"):
        nothing = seconds(plan())
        generation = seconds(plan(generate=True)) - nothing
        learning = seconds(plan(num_updates=config.num_updates)) - nothing
        evaluation = seconds(plan(evaluate=True)) - nothing
    env_steps = config.num_seeds * training.evaluation_episodes * spec.episode_length
    rates = {
        f"guided trajectories, N = {config.diffusion.num_steps}": config.num_seeds
        * training.num_trajectories
        / generation,
        f"learner updates, all {config.num_seeds} seeds": config.num_seeds * config.num_updates / learning,
        "MJX environment steps": env_steps / evaluation,
    }
    print_table(
        f"2halfcheetah, {config.num_seeds} seeds on {mesh.size} devices",
        [{"what": what, "a second": f"{rate:.0f}"} for what, rate in rates.items()],
    )


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
