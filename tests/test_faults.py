"""The fault audit of `tests/faults.py` finds no failure."""

import jax
import pytest

from tests.fault_world import World, make_world
from tests.faults import AUDITS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world():
    with make_world() as made, jax.debug_key_reuse(False):
        yield made


@pytest.mark.parametrize("name", AUDITS)
def test_no_fault_is_a_traceback_or_a_wrong_number(world: World, name: str):
    figures = AUDITS[name](world)
    print(name, figures)
    if "skipped" in figures:
        pytest.skip(figures["skipped"])
    assert figures["failures"] == []
