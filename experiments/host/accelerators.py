"""Peak rates of common accelerators, and those of this machine by a short measurement."""

import os
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from coda_jax.backend import Precision
from experiments.host.program_cost import ProgramCost, program_cost

THIS = "this"
Machine = Literal["this", "a100", "h100", "h200", "l4", "tpu-v5e", "tpu-v5p", "tpu-v6e"]
"""The machines of an estimate: `this` one, or one accelerator of the table."""


class Accelerator(NamedTuple):
    """One device.

    flops:     float32 operations per second of matrix products, by the precision asked for.
    bandwidth: bytes per second between the processor and its memory.
    overhead:  seconds from the start of a kernel to the next, at least.
    memory:    bytes of its memory.
    backend:   the name of jax's backend.
    """

    flops: dict[Precision, float]
    bandwidth: float
    overhead: float
    memory: float
    backend: str

    def seconds(self, cost: ProgramCost, precision: Precision) -> float:
        """Seconds of a program: its arithmetic, its memory traffic and the starts of its kernels, one after the other.

        Within a kernel the first two overlap, but most kernels have much of one of them.
        """
        return cost.flops / self.flops[precision] + cost.bytes / self.bandwidth + self.overhead * cost.kernels


def _gpu(float32: float, tf32: float, bandwidth: float, memory: float) -> Accelerator:
    """TFLOP/s, TFLOP/s, GB/s, GB. 4 us a kernel is an assumption."""
    rates: dict[Precision, float] = {"highest": 1e12 * float32, "high": 1e12 * tf32, "default": 1e12 * tf32}
    return Accelerator(rates, 1e9 * bandwidth, 4e-6, 1e9 * memory, "gpu")


def _tpu(bfloat16: float, bandwidth: float, memory: float) -> Accelerator:
    """TFLOP/s, GB/s, GB; float32 takes six passes of bfloat16, `high` three. 1 us a kernel is an assumption."""
    rates: dict[Precision, float] = {"highest": 1e12 * bfloat16 / 6, "high": 1e12 * bfloat16 / 3}
    return Accelerator({**rates, "default": 1e12 * bfloat16}, 1e9 * bandwidth, 1e-6, 1e9 * memory, "tpu")


# Published peak rates, without sparsity: NVIDIA's data sheets of the A100 80GB SXM, the H100 SXM, the H200 SXM and the
# L4; Google's pages on Cloud TPU v5e, v5p and v6e (per chip). Looked up in 2026.
ACCELERATORS: dict[str, Accelerator] = {
    "a100": _gpu(19.5, 156.0, 2039.0, 80.0),
    "h100": _gpu(66.9, 494.7, 3350.0, 80.0),
    "h200": _gpu(66.9, 494.7, 4800.0, 141.0),
    "l4": _gpu(30.3, 60.0, 300.0, 24.0),
    "tpu-v5e": _tpu(197.0, 819.0, 16.0),
    "tpu-v5p": _tpu(459.0, 2765.0, 95.0),
    "tpu-v6e": _tpu(918.0, 1640.0, 32.0),
}


def measure_this_machine(num_devices: int) -> Accelerator:
    """The rates of each of so many devices while all of them work: matrix products, memory traffic, short kernels.

    The arrays of the second fit a CPU's cache, as the programs' working sets do there, and exceed an accelerator's. It
    takes some seconds.
    """
    is_cpu = jax.default_backend() == "cpu"
    size, num_floats = (256, 2**18) if is_cpu else (4096, 2**27)
    square, line, tile = jnp.ones((size, size)), jnp.ones(num_floats), jnp.ones((8, 8))

    def products(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, _: (y @ x, None), x, length=40)[0]

    def stream(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, _: (0.5 * y + 1.0, None), x, length=40)[0]

    def short_kernels(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, _: (jnp.sin(y @ x), None), x, length=2000)[0]

    flops = 40 * 2 * size**3 / _seconds(products, square, num_devices)
    bandwidth = 40 * 2 * line.nbytes / _seconds(stream, line, num_devices)
    overhead = _seconds(short_kernels, tile, num_devices) / program_cost(short_kernels, tile).kernels
    statistics = jax.devices()[0].memory_stats() or {}
    memory = statistics.get("bytes_limit", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / num_devices)
    rates: dict[Precision, float] = {"highest": flops, "high": flops, "default": flops}
    return Accelerator(rates, bandwidth, overhead, memory, jax.default_backend())


def _seconds(program: Callable[[Any], Any], x: jax.Array, num_devices: int) -> float:
    """Median seconds of a program that runs on so many devices, in float32."""
    mesh = jax.make_mesh((num_devices,), ("device",), devices=jax.devices()[:num_devices])
    with jax.default_matmul_precision("highest"):
        on_all = jax.jit(
            jax.shard_map(program, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
        )
        jax.block_until_ready(on_all(x))
    times = []
    for _ in range(9):
        start = time.perf_counter()
        jax.block_until_ready(on_all(x))
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]
