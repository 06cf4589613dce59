"""The command that compares values of critics with returns in the simulator."""

import numpy as np
import pytest

from experiments import values
from experiments.values import BLOCK, compare, slowed


def test_the_measures_of_known_values():
    earned = np.array([1.0, 2.0, 3.0, 6.0])
    mean, truth, bias, error, correlation = compare(2.0 * earned + 1.0, earned)
    assert (mean, truth, bias) == pytest.approx((7.0, 3.0, 4.0)) and correlation == pytest.approx(1.0)
    assert error == pytest.approx(np.sqrt(np.mean([4.0, 9.0, 16.0, 49.0])))
    assert compare(np.ones(4), earned)[-1] == 0.0  # equal values tell nothing apart


def test_a_play_has_slowed_if_it_ends_at_less_than_half_its_best_pace():
    paces = np.array([[1.0, 4.0, 3.9], [1.0, 4.0, 1.9], [5.0, 2.0, 2.0], [1.0, 2.0, 4.0]])
    assert slowed(np.repeat(paces, BLOCK, axis=1)) == 0.5
    assert slowed(np.ones((2, BLOCK // 2))) == 0.0  # too short to slow


@pytest.mark.parametrize(("names", "message"), [(["a"], "is no finished run"), (["a", "b/a"], "two runs are named a")])
def test_unsuitable_runs_are_refused(tmp_path, capsys, names, message):
    with pytest.raises(SystemExit) as ended:
        values.main([*(str(tmp_path / name) for name in names), "--output", str(tmp_path / "v")])
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "v").exists()
