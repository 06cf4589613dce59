import pytest

from experiments.host.accelerators import ACCELERATORS, measure_this_machine
from experiments.host.program_cost import ProgramCost


def test_seconds_are_those_of_arithmetic_traffic_and_the_starts_of_kernels():
    a100 = ACCELERATORS["a100"]
    cost = ProgramCost(flops=19.5e12, bytes=2 * 2039e9, kernels=250_000.0, memory=0.0)
    assert a100.seconds(cost, "highest") == pytest.approx(1.0 + 2.0 + 1.0)
    assert a100.seconds(cost, "default") == pytest.approx(1 / 8 + 2.0 + 1.0)


def test_rates_are_no_lower_at_lower_precision():
    for accelerator in ACCELERATORS.values():
        assert accelerator.flops["highest"] <= accelerator.flops["high"] <= accelerator.flops["default"]


def test_this_machine_has_plausible_rates():
    this = measure_this_machine(2)
    assert 1e8 < this.flops["highest"] < 1e13 and 1e8 < this.bandwidth < 1e13
    assert 1e-9 < this.overhead < 1e-3 and this.memory > 1e8
    assert this.backend == "cpu"
