"""Ranges of settings, declared once at the fields of the dataclasses and enforced whenever one is made.

A numeric field is annotated with `annotated-types` (`Ge`, `Gt`, `Le`, `Lt`, `Interval`, `MinLen`), by itself or through
the names below. Floats are bounded by infinity, so that NaN and infinite values are refused too. The elements of a
tuple have a range of their own: `tuple[Count, ...]`.

Floats must be in range as the programs see them: in single precision, where XLA takes subnormal numbers as zero.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import annotated_types as at
import numpy as np

Count = Annotated[int, at.Interval(ge=1, lt=2**31)]
"""A number of things, of which there must be one; fits the int32 of counters."""
NonNegativeCount = Annotated[int, at.Interval(ge=0, lt=2**31)]
"""A number of things, or none."""
Seed = Annotated[int, at.Interval(ge=0, lt=2**32)]
"""A random seed; jax takes larger ones modulo 2^32."""
Real = Annotated[float, at.Interval(gt=-math.inf, lt=math.inf)]
"""Any finite number."""
NonNegative = Annotated[float, at.Interval(ge=0.0, lt=math.inf)]
"""Zero or larger, finite."""
Positive = Annotated[float, at.Interval(gt=0.0, lt=math.inf)]
"""Larger than zero, finite."""
Share = Annotated[float, at.Interval(ge=0.0, le=1.0)]
"""Between 0 and 1, both included."""
PositiveShare = Annotated[float, at.Interval(gt=0.0, le=1.0)]
"""Above 0, at most 1."""

_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class RangeError(ValueError):
    """A value outside of its range.

    Attributes:
        field: name of the field.
        problem: value and range in words, as in `is 1.5; it must be at least 0 and at most 1`.
    """

    def __init__(self, field: str, value: object, requirement: str):
        self.field = field
        self.problem = f"is {value}; {requirement}"
        super().__init__(f"{field} {self.problem}")


class Ranged:
    """Base of the settings dataclasses: checks the declared ranges whenever one is made.

    A subclass that compares fields with each other extends `__post_init__`.

    Examples:
        >>> cj.MaddpgBcConfig(discount=1.5)
        Traceback (most recent call last):
        coda_jax.ranges.RangeError: discount is 1.5; it must be at least 0 and at most 1
    """

    def __post_init__(self) -> None:
        check_ranges(self)


def check_ranges(config: Any) -> None:
    """Checks every field of a dataclass against its declared range.

    Raises:
        RangeError: names the first field out of range, its value and the range.
    """
    for name, hint in field_types(type(config)).items():
        check_range(name, getattr(config, name), hint)


def check_range(name: str, value: Any, hint: Any) -> None:
    """Refuses a value that violates its annotation, by a `RangeError`."""
    requirement = violated(value, hint)
    if requirement is not None:
        raise RangeError(name, value, requirement)


def check_seeds(seed: int, num_seeds: int) -> None:
    """Refuses seeds `seed`, `seed + 1`, ... that reach 2^32, by a `RangeError`."""
    if seed + num_seeds > 2**32:
        raise RangeError("seed", seed, f"the last of {num_seeds} seeds must be below {2**32}")


@functools.cache
def field_types(config: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields by name, with the declared ranges."""
    hints = typing.get_type_hints(config, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def bounds(hint: Any) -> list[at.Ge | at.Gt | at.Le | at.Lt]:
    """The bounds that an annotation declares for its value itself, not for the elements of a tuple."""
    return [mark for mark in _metadata(hint) if isinstance(mark, at.Ge | at.Gt | at.Le | at.Lt)]


def base(hint: Any) -> Any:
    """An annotation without its bounds."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, and of any other annotation itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def element_types(hint: Any, length: int) -> tuple[Any, ...]:
    """The annotations of the elements of a tuple of `length`; empty if the annotation is not that of a tuple."""
    if typing.get_origin(base(hint)) is not tuple:
        return ()
    elements = typing.get_args(base(hint))
    return (elements[0],) * length if elements[-1] is Ellipsis else elements


def _metadata(hint: Any) -> Iterator[Any]:
    for mark in typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ():
        yield from mark if isinstance(mark, at.GroupedMetadata) else (mark,)


def violated(value: Any, hint: Any) -> str | None:
    """The requirement that a value violates, in words; None if there is none."""
    mismatch = _mismatch(value, hint)
    if mismatch is not None or value is None:
        return mismatch
    for alternative in alternatives(hint):
        limits = [] if isinstance(value, str) else bounds(alternative)  # a word in place of a number
        if not all(_holds(value, limit) for limit in limits):
            return f"it must be {_in_words(limits)}"
        if base(alternative) is float and not all(_holds(value, limit, _single) for limit in limits):
            return f"it must be {_in_words(limits)} in single precision"
        for mark in _metadata(alternative):
            if isinstance(mark, at.MinLen) and len(value) < mark.min_length:
                return f"it must have at least {mark.min_length} entries"
        if isinstance(value, tuple):
            for element, element_type in zip(value, element_types(alternative, len(value)), strict=False):
                requirement = violated(element, element_type)
                if requirement is not None:
                    return requirement.replace("it must", "each entry must")
    return None


def _mismatch(value: Any, hint: Any) -> str | None:
    """What a value must be to have the type of its annotation; numbers, words, and true or false are checked."""
    if hint in (str, bool):
        return None if isinstance(value, hint) else f"it must be {'a word' if hint is str else 'true or false'}"
    options = [base(option) for option in alternatives(hint)]
    if all(typing.get_origin(option) is Literal for option in options):
        words = [word for option in options for word in typing.get_args(option)]
        return None if value in words else f"it must be one of {', '.join(map(str, words))}"
    kinds = {option for option in options if option in (int, float)}
    if kinds and (value is None or isinstance(value, str | bool)):
        return None if set(options) - kinds else "it must be a number"
    return "it must be a whole number" if kinds == {int} and isinstance(value, float) else None


def _single(value: float) -> float:
    """A number in single precision, where subnormal numbers are zero."""
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    return 0.0 if abs(rounded) < np.finfo(np.float32).tiny else float(rounded)


def _holds(
    value: Any, bound: at.Ge | at.Gt | at.Le | at.Lt, rounded: Callable[[Any], Any] = lambda number: number
) -> bool:
    """Whether a value keeps to a bound, both rounded; NaN keeps to none."""
    match bound:
        case at.Ge(limit):
            return rounded(value) >= rounded(limit)
        case at.Gt(limit):
            return rounded(value) > rounded(limit)
        case at.Le(limit):
            return rounded(value) <= rounded(limit)
    return rounded(value) < rounded(bound.lt)


def _in_words(limits: list[at.Ge | at.Gt | at.Le | at.Lt]) -> str:
    words = []
    for limit in limits:
        ((name, value),) = dataclasses.asdict(limit).items()
        number = f"{value:g}" if isinstance(value, float) else f"{value}"
        words.append("finite" if abs(value) == math.inf and name in ("gt", "lt") else f"{_WORDS[name]} {number}")
    return " and ".join(dict.fromkeys(words))
