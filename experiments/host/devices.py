"""The mesh of devices the seeds are sharded over: host cores on a CPU, else all accelerators."""

import os
import platform
from pathlib import Path

import jax
from jax.sharding import AxisType, Mesh

from experiments.host.errors import UserError


def set_up_devices(num_seeds: int) -> Mesh:
    """Returns a one-axis `seed` mesh over as many devices as divide the seeds evenly.

    On a CPU every device is one core, because one XLA program hardly uses the second; `JAX_NUM_CPU_DEVICES` or the
    corresponding XLA flag overrule that. To be called before anything else starts jax's backend.

    Raises:
        UserError: if there is no seed to run.
    """
    if num_seeds < 1:
        raise UserError(f"--num-seeds is {num_seeds}; a run needs at least one seed")
    setting: int = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    if setting < 1 and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", largest_divisor(num_seeds, visible_cores()))
    devices = jax.devices()[: largest_divisor(num_seeds, jax.device_count())]
    return jax.make_mesh((len(devices),), ("seed",), axis_types=(AxisType.Auto,), devices=devices)


def largest_divisor(number: int, limit: int) -> int:
    """Returns the largest divisor of `number` that is at most `limit`."""
    return max(divisor for divisor in range(1, min(number, limit) + 1) if number % divisor == 0)


def visible_cores() -> int:
    """Returns how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor(file: Path = Path("/proc/cpuinfo")) -> str:
    """Names the kind of CPU, which decides the last bits of results, as Linux describes it in a file."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    vectors = [name for name in ("avx", "avx2", "avx512f") if name in known.get("flags", "").split()]
    names = ("cpu family", "model", "CPU implementer", "CPU part")  # of x86, and of ARM
    kind = [f"{name} {known[name]}" for name in names if name in known]
    return ", ".join([known.get("model name", platform.machine()), *kind, *vectors[-1:]])
