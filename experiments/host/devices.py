"""The device mesh for sharding the seeds: host cores on a CPU, else all accelerators; of all hosts of a run."""

import collections
import os
import platform
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from experiments.host.errors import UserError

Tree = TypeVar("Tree")


def set_up_devices(num_seeds: int) -> Mesh:
    """Returns a mesh with one axis `seed`, over the largest number of devices that divides the number of seeds.

    On a CPU every device is one core, because one XLA program hardly uses more; `JAX_NUM_CPU_DEVICES` or the
    corresponding XLA flag override this. Of several hosts, each has the same number of devices in the mesh. Call it
    before jax's backend starts.

    Raises:
        UserError: `num_seeds` is less than 1, or does not spread evenly over several hosts, or these differ in their
            number of devices.
    """
    if num_seeds < 1:
        raise UserError(f"--num-seeds is {num_seeds}; a run needs at least one seed")
    setting: int = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
    if setting < 1 and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", largest_divisor(num_seeds, visible_cores()))
    num_hosts = jax.process_count()
    if num_seeds % num_hosts:
        raise UserError(f"--num-seeds {num_seeds} does not spread evenly over {num_hosts} processes")
    of_hosts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(of_hosts.values())) > 1:
        numbers = ", ".join(str(of_hosts[host]) for host in range(num_hosts))
        raise UserError(f"the hosts have {numbers} devices; set JAX_NUM_CPU_DEVICES (on CPUs) to one number on all")
    num_each = largest_divisor(num_seeds // num_hosts, of_hosts[0])
    of_host = [[device for device in jax.devices() if device.process_index == host] for host in range(num_hosts)]
    devices = [device for own in of_host for device in own[:num_each]]
    return jax.make_mesh((len(devices),), ("seed",), axis_types=(AxisType.Auto,), devices=devices)


def own_part(mesh: Mesh) -> Mesh:
    """The mesh of this host's devices alone."""
    devices = mesh.local_devices
    return jax.make_mesh((len(devices),), ("seed",), axis_types=(AxisType.Auto,), devices=devices)


def seed_keys(seeds: np.ndarray, mesh: Mesh) -> Array:
    """The root keys of seeds, sharded over the mesh."""
    keys, by_seed = jax.vmap(jax.random.key)(seeds), NamedSharding(mesh, PartitionSpec("seed"))
    if mesh.is_multi_process:
        return jax.jit(lambda keys: keys, out_shardings=by_seed)(keys)
    return jax.device_put(keys, by_seed)


def replicated(tree: Tree, mesh: Mesh) -> Tree:
    """A pytree of arrays on all devices of the mesh; every host has the same ones."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if not mesh.is_multi_process:
        return jax.device_put(tree, sharding)

    def put(leaf: Array) -> Array:
        values = np.asarray(leaf)
        return jax.make_array_from_process_local_data(sharding, values, values.shape)

    return jax.tree.map(put, tree)


def on_one_device(tree: Tree, mesh: Mesh) -> Tree:
    """A replicated pytree on the first of this host's devices in the mesh."""
    return jax.device_put(jax.tree.map(lambda leaf: leaf.addressable_data(0), tree), mesh.local_devices[0])


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
