"""`--estimate`: the cost of a command before it begins; the phases of the main job.

Programs are compiled, and none of the run's is run. Shapes and chunks are those of the machine that is asked about; the
compiler is that of this one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from coda_jax.backend import Precision, Sizes, sizes
from coda_jax.data.vault_files import open_vault
from coda_jax.dynamics.ensemble import make_dynamics
from coda_jax.envs import mamujoco
from coda_jax.prior import make_model
from experiments.host.accelerators import ACCELERATORS, THIS, Accelerator, Machine, measure_this_machine
from experiments.host.cache import enable_compilation_cache
from experiments.host.console import duration, phase, print_table, say
from experiments.host.devices import set_up_devices
from experiments.pipeline.fitting import Fit
from experiments.pipeline.phase_costs import (
    PhaseCost,
    Trained,
    collection_phase,
    dataset_shapes,
    dynamics_phase,
    fit_phase,
    key_shapes,
    physics_cost,
    prior_shapes,
    training_phases,
)
from experiments.pipeline.settings import ExperimentConfig, needs_denoiser, needs_dynamics
from experiments.pipeline.training import make_job

PREALLOCATED = 0.75
"""Share of a GPU's memory that jax takes at the start, unless it is told otherwise."""


def show_estimate(
    machine: Machine, num_seeds: int, precision: Precision, phases_of: Callable[[int, Sizes], list[PhaseCost]]
) -> None:
    """Prints the estimate of a command for a machine.

    Args:
        machine: `this`, whose devices share the seeds, or one accelerator.
        num_seeds: policy seeds.
        precision: of the networks' matrix products.
        phases_of: (devices, how much they compute at once) -> the phases of the command on each device.

    Raises:
        VaultError: a vault that cannot be read.
    """
    num_devices = set_up_devices(num_seeds if machine == THIS else 1).size
    enable_compilation_cache()
    with jax.default_matmul_precision(precision), phase("compiling"):
        backend = jax.default_backend() if machine == THIS else ACCELERATORS[machine].backend
        phases = phases_of(num_devices, sizes(backend))
    accelerator = measure_this_machine(num_devices) if machine == THIS else ACCELERATORS[machine]
    print_estimate(f"{num_devices} x {machine}", phases, accelerator, precision)


def phases_of(config: ExperimentConfig, num_devices: int, sizes: Sizes) -> list[PhaseCost]:
    """The phases of a run, on each of so many devices that compute so much at once."""
    env = mamujoco.make(config.task)
    training, seeds = config.training, config.num_seeds // num_devices
    physics = physics_cost(env)
    phases = []
    if config.vault is None:
        num_steps = config.data.num_episodes * env.spec.episode_length
        phases.append(collection_phase(env, config.data.num_episodes, physics, num_devices, sizes))
    else:
        length = open_vault(config.vault).length
        num_steps = min(length, config.data.max_transitions or length)

    num_steps = round(num_steps * (1 - config.data.held_out_fraction))
    model = make_model(env.spec, training.horizon, config.denoiser, config.diffusion)
    dataset = dataset_shapes(env.spec, num_steps, training.horizon)
    prior: Any = ()
    dynamics = None
    if needs_denoiser(config):
        phases.append(fit_phase(config.denoiser, model, dataset, num_devices, sizes))
        prior = prior_shapes(model, num_steps)
    if needs_dynamics(config):
        phases.append(dynamics_phase(config.dynamics, env.spec, dataset))
        dynamics = jax.eval_shape(make_dynamics(env.spec, config.dynamics).fit, dataset, key_shapes())

    shapes = Fit(model, dataset, dataset, "", denoiser=None, prior=prior, dynamics=dynamics, held_out_loss=None)
    # Scales of the learner's inputs have the same shapes whether they are the data's or not.
    raw = dataclasses.replace(config, standardise=False)
    job = make_job(raw, env, shapes, set_up_devices(1))
    sampler = config.diffusion if needs_denoiser(config) else None
    trained = Trained(env, job.learner, job.augmentation, sampler, job.prior, dataset)
    return phases + training_phases(trained, training, seeds, physics, sizes)


def print_estimate(title: str, phases: list[PhaseCost], accelerator: Accelerator, precision: Precision) -> None:
    """Prints the table of an estimate, the rates behind it, and whether the memory suffices."""
    seconds = [accelerator.seconds(each.cost, precision) for each in phases]
    rows = [
        {
            "phase": each.name,
            "steps": f"{each.steps:,} {each.unit}",
            "TFLOP": _short(each.cost.flops / 1e12),
            "GB moved": _short(each.cost.bytes / 1e9),
            "peak GB": f"{each.cost.memory / 1e9:.2f}",
            "time": duration(spent),
        }
        for each, spent in zip(phases, seconds, strict=True)
    ]
    peak = max(each.cost.memory for each in phases)
    nothing = {"steps": "", "TFLOP": "", "GB moved": ""}
    rows.append({"phase": "total", **nothing, "peak GB": f"{peak / 1e9:.2f}", "time": duration(sum(seconds))})
    print_table(f"estimate for {title}, for each device; nothing has run", rows)
    say(
        f"rates: {accelerator.flops[precision] / 1e12:.3g} TFLOP/s in matrix products of precision {precision}, "
        f"{accelerator.bandwidth / 1e9:,.3g} GB/s, {accelerator.overhead * 1e6:.2g} us to start a kernel"
    )
    if peak > accelerator.memory:
        verdict = "it does not fit"
    elif accelerator.backend == "gpu" and peak > PREALLOCATED * accelerator.memory:
        verdict = f"it fits with XLA_PYTHON_CLIENT_MEM_FRACTION above {PREALLOCATED}"
    else:
        verdict = "it fits"
    say(f"memory: {peak / 1e9:.2f} of {accelerator.memory / 1e9:.0f} GB, {verdict}")
    say("left out: compilation, measures of sample quality, reading and writing files; nothing is taken from the cache")


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"
