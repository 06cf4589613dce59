import numpy as np
import pytest

from experiments.evidence.scaling import (
    Cost,
    Curve,
    ScalingSizes,
    draw_scaling,
    exponent,
    learner_cost,
    measure_scaling,
    measured_cost,
    reading_costs,
    scaling_record,
    scaling_rows,
)

TINY = ScalingSizes(
    seeds=(1, 2),
    agents=(2, 3),
    horizons=(4, 8),
    sampler_steps=(2, 4),
    trajectories=(8, 16),
    transitions=(200, 400),
    part=100,
    updates=2,
    width=4,
)


def test_the_exponent_of_a_power_law_is_recovered():
    sizes = np.array([1.0, 3.0, 10.0])
    assert exponent(sizes, 5.0 * sizes**1.5) == pytest.approx(1.5)


def test_more_than_linear_growth_is_marked():
    costs = tuple(Cost(n, 0.1 * n**2, 10 * n) for n in (1, 2, 4))
    row = scaling_rows([Curve("sorting", "cards", costs)])[0]
    assert row["exponent"] == "2.00*"
    assert row["exponent of MB"] == "1.00"


def test_the_bytes_of_a_program_are_those_of_its_arguments_and_results():
    x = np.ones(1000, np.float32)
    seconds, num_bytes = measured_cost(lambda x: 2 * x, x)
    assert num_bytes == 8000
    assert seconds > 0


@pytest.mark.slow
def test_the_learner_holds_one_copy_of_the_dataset_for_all_seeds():
    small, large = (learner_cost(TINY, num_seeds=4, num_transitions=n)[1] for n in (1000, 3000))
    per_step = 4 * (17 + 2 * 12 + 2 * 3 + 2) + 4 * 81 / 100  # float32; 81 windows of 20 steps start in an episode
    assert large - small == pytest.approx(2000 * per_step, rel=0.1)


def test_reading_a_part_of_a_vault_does_not_hold_all_of_it():
    whole, part = reading_costs(300_000, part=10_000)
    assert whole[1] > 300_000 * 32
    assert part[1] < 0.6 * whole[1]


@pytest.mark.slow
def test_all_curves_are_measured_and_drawn(tmp_path):
    names = []
    curves = measure_scaling(TINY, names.append)
    assert len(names) == 9
    assert len(scaling_rows(curves)) == len(scaling_record(curves)) == 10
    draw_scaling(tmp_path / "scaling.png", curves)
    assert (tmp_path / "scaling.png").stat().st_size > 1000
