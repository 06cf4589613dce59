import os
import platform
import subprocess
import sys

import hypothesis
import jax
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType

from experiments.host.devices import largest_divisor, processor, set_up_devices, visible_cores
from experiments.host.errors import UserError


@hypothesis.given(number=st.integers(1, 200), limit=st.integers(1, 200))
def test_largest_divisor(number, limit):
    divisor = largest_divisor(number, limit)
    assert number % divisor == 0 and divisor <= limit
    assert all(number % larger for larger in range(divisor + 1, min(number, limit) + 1))


@pytest.mark.parametrize(("num_seeds", "size"), [(1, 1), (2, 2), (3, 1), (4, 2)])
def test_seeds_divide_evenly_over_the_two_devices_of_the_tests(num_seeds, size):
    mesh = set_up_devices(num_seeds)
    assert mesh.axis_names == ("seed",) and mesh.size == size
    assert mesh.axis_types == (AxisType.Auto,)
    assert mesh.devices.tolist() == jax.devices()[:size]


@pytest.mark.parametrize("num_seeds", [0, -1])
def test_no_seed_is_an_error(num_seeds):
    with pytest.raises(UserError, match=f"--num-seeds is {num_seeds}"):
        set_up_devices(num_seeds)


def test_by_default_a_core_is_a_device():
    environment = {
        name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    }
    program = "from experiments.host.devices import set_up_devices; print(set_up_devices(6).size)"
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    assert int(answer.stdout) == largest_divisor(6, visible_cores()), answer.stderr


def test_processor_description(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: EPYC\nflags\t\t: fpu avx avx2\n\n"
        "processor\t: 1\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: EPYC\nflags\t\t: fpu avx avx2\n"
    )
    assert processor(file) == "EPYC, cpu family 25, model 1, avx2"
    file.write_bytes(b"processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\nodd\t: \xe9\n")
    assert processor(file) == f"{platform.machine()}, CPU implementer 0x41, CPU part 0xd40"
    assert processor(tmp_path / "none") == platform.machine()
