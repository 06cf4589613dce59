"""The device mesh for sharding the seeds: host cores on a CPU, else all accelerators."""

import os
import platform
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from experiments.host.errors import UserError


def set_up_devices(num_seeds: int) -> Mesh:
    """Returns a mesh with one axis `seed`, over the largest number of devices that divides the number of seeds.

    On a CPU every device is one core, because one XLA program hardly uses more; `JAX_NUM_CPU_DEVICES` or the
    corresponding XLA flag override this. Call it before jax's backend starts.

    Raises:
        UserError: `num_seeds` is less than 1.
    """
    if num_seeds < 1:
        raise UserError(f"--num-seeds is {num_seeds}; a run needs at least one seed")
    setting: int = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    if setting < 1 and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", largest_divisor(num_seeds, visible_cores()))
    devices = jax.devices()[: largest_divisor(num_seeds, jax.device_count())]
    return jax.make_mesh((len(devices),), ("seed",), axis_types=(AxisType.Auto,), devices=devices)


def seed_keys(seeds: np.ndarray, mesh: Mesh) -> Array:
    """The root keys of seeds, sharded over the mesh."""
    return jax.device_put(jax.vmap(jax.random.key)(seeds), NamedSharding(mesh, PartitionSpec("seed")))


def largest_divisor(number: int, limit: int) -> int:
    """Returns the largest divisor of `number` that is at most `limit`."""
    return max(divisor for divisor in range(1, min(number, limit) + 1) if number % divisor == 0)


def visible_cores() -> int:
    """Returns the number of cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor(file: Path = Path("/proc/cpuinfo")) -> str:
    """Names the kind of CPU, which decides the last bits of results, as Linux describes it in a file."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    vectors = [name for name in ("avx", "avx2", "avx512f") if name in fields.get("flags", "").split()]
    names = ("cpu family", "model", "CPU implementer", "CPU part")  # x86, ARM
    kind = [f"{name} {fields[name]}" for name in names if name in fields]
    return ", ".join([fields.get("model name", platform.machine()), *kind, *vectors[-1:]])
