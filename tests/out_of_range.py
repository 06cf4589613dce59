"""Values outside of the declared ranges, generated for every numeric field of a configuration."""

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Any

import annotated_types as at

from coda_jax import ranges


def leaves(config: type, outer: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, tuple[str, ...]]]:
    """Path, annotation of the number, and (for an entry of a tuple) the in-range entries before it."""
    for name, hint in ranges.field_types(config).items():
        path = (*outer, name)
        for alternative in ranges.alternatives(hint):
            kind = ranges.base(alternative)
            if dataclasses.is_dataclass(kind):
                yield from leaves(kind, path)
            elif kind in (int, float):
                yield path, alternative, ()
            elif typing.get_origin(kind) is tuple:
                elements = typing.get_args(kind)
                number = 1 if elements[-1] is Ellipsis else len(elements)
                if ranges.base(elements[0]) in (int, float):
                    yield path, elements[0], ("0",) * (number - 1)


def outside(hint: Any) -> list[str]:
    """Values beyond each bound of a range, some in single precision only, and those that are no finite numbers."""
    values = ["nan", "inf", "-inf"] if ranges.base(hint) is float else []
    if at.Le(math.inf) in ranges.bounds(hint):
        values.remove("inf")
    for bound in ranges.bounds(hint):
        match bound:
            case at.Gt(limit) | at.Lt(limit):
                values.append(str(limit))
                if ranges.base(hint) is float:
                    values.append(str(_beyond_single(bound, float(limit))))  # pyright: ignore[reportArgumentType]
            case at.Ge(limit):
                values.append(str(limit - 1))  # pyright: ignore[reportOperatorIssue]
            case at.Le(limit) if limit < math.inf:  # pyright: ignore[reportOperatorIssue]
                values.append(str(limit + 1))  # pyright: ignore[reportOperatorIssue]
    return list(dict.fromkeys(values))


def _beyond_single(bound: at.Gt | at.Lt, limit: float) -> float:
    """A number within a bound that single precision rounds to it."""
    if math.isinf(limit):
        return math.copysign(1e39, limit)
    return math.nextafter(limit, math.inf if isinstance(bound, at.Gt) else -math.inf)
