import dataclasses
import math
from typing import Annotated, Literal

import annotated_types as at
import pytest

from coda_jax.ranges import Count, NonNegative, Ranged, RangeError, Seed, Share, check_seeds


@dataclasses.dataclass(frozen=True)
class Settings(Ranged):
    share: Share = 0.5
    rate: Annotated[float, at.Interval(gt=0.0, lt=math.inf)] = 1.0
    widths: Annotated[tuple[Count, ...], at.MinLen(1)] = (1, 2)
    centre: tuple[Share, NonNegative] = (0.0, 2.0)
    below: Annotated[float, at.Interval(ge=0.1, lt=1.0)] = 0.1
    limit: Count | None = None
    scale: NonNegative | Literal["auto"] = 0.5
    seed: Seed = 0
    name: str = ""
    is_fast: bool = True
    solver: Literal["heun", "dpm"] = "heun"


@pytest.mark.parametrize(
    "changes",
    [
        *({"share": value} for value in (0.0, 1.0)),
        *({"rate": value} for value in (1e-30, 1e30)),
        {"widths": (1,)},
        {"centre": (1.0, 0.0)},
        *({"limit": value} for value in (None, 1)),
        *({"scale": value} for value in ("auto", 0.0)),
        {"seed": 2**32 - 1},
    ],
)
def test_the_ends_of_a_range_are_in_it(changes):
    assert dataclasses.asdict(Settings(**changes)).items() >= changes.items()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 1.5}, "share is 1.5; it must be at least 0 and at most 1"),
        ({"share": math.nan}, "share is nan; it must be at least 0 and at most 1"),
        ({"rate": 0.0}, "rate is 0.0; it must be above 0 and finite"),
        ({"rate": math.inf}, "rate is inf; it must be above 0 and finite"),
        ({"widths": (8, 0)}, r"widths is \(8, 0\); each entry must be at least 1"),
        ({"widths": ()}, r"widths is \(\); it must have at least 1 entries"),
        ({"centre": (2.0, 2.0)}, "centre is .* each entry must be at least 0 and at most 1"),
        ({"centre": (0.0, -2.0)}, "centre is .* each entry must be at least 0 and finite"),
        ({"limit": 0}, "limit is 0; it must be at least 1"),
        ({"scale": -1.0}, "scale is -1.0; it must be at least 0 and finite"),
        ({"scale": math.nan}, "scale is nan; it must be at least 0 and finite"),
        ({"rate": 1e-45}, "rate is 1e-45; it must be above 0 and finite in single precision"),
        ({"rate": 1e39}, r"rate is 1e\+39; it must be above 0 and finite in single precision"),
        ({"below": 1 - 1e-9}, "below is 0.999999999; it must be at least 0.1 and below 1 in single precision"),
        ({"widths": (8, "a")}, r"widths is \(8, 'a'\); each entry must be a number"),
        ({"share": None}, "share is None; it must be a number"),
        ({"name": 3}, "name is 3; it must be a word"),
        ({"is_fast": "no"}, "is_fast is no; it must be true or false"),
        ({"solver": "euler"}, "solver is euler; it must be one of heun, dpm"),
        ({"seed": 2.0}, "seed is 2.0; it must be a whole number"),
        ({"seed": 2**32}, "seed is 4294967296; it must be at least 0 and below 4294967296"),
    ],
)
def test_a_value_outside_is_refused_by_name(changes, message):
    with pytest.raises(RangeError, match=message):
        Settings(**changes)
    with pytest.raises(RangeError):
        dataclasses.replace(Settings(), **changes)


def test_the_last_of_several_seeds_is_below_two_to_the_32():
    check_seeds(2**32 - 4, 4)
    with pytest.raises(RangeError, match="seed"):
        check_seeds(2**32 - 3, 4)
