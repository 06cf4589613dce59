"""The cost of a program before it runs: operations, bytes, kernels and peak memory, by XLA's analyses.

XLA's cost analysis counts the body of a loop once, however often it runs. Here the traced program is counted twice,
with every loop body once and as often as it runs, and XLA's numbers are multiplied by the ratio.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

DATA_DEPENDENT_TRIPS = 3
"""Assumed iterations of a loop that ends by a condition on its data. In a run only MJX's Newton solver has one."""

_FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call", "conditional")
)
"""Instructions that start no kernel of their own."""

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(r" = .*?[ )]([a-z][\w-]*)\(")
_CALLED = re.compile(r"(?:body|to_apply|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class ProgramCost(NamedTuple):
    """The cost of one call of a program on one device.

    flops:   floating-point operations.
    bytes:   bytes read and written by its kernels.
    kernels: kernels started, one after the other.
    memory:  the most bytes held at once, arguments and results included.
    """

    flops: float
    bytes: float
    kernels: float
    memory: float

    def times(self, calls: float) -> "ProgramCost":
        """The cost of several calls, one after the other."""
        return self._replace(flops=self.flops * calls, bytes=self.bytes * calls, kernels=self.kernels * calls)

    def holding(self, held: float) -> "ProgramCost":
        """The cost with so many bytes of memory held beside."""
        return self._replace(memory=self.memory + held)

    def then(self, other: "ProgramCost") -> "ProgramCost":
        """The cost of another program after this one."""
        return ProgramCost(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.kernels + other.kernels,
            max(self.memory, other.memory),
        )


def program_cost(function: Callable[..., Any], *arguments: Any) -> ProgramCost:
    """Compiles a function for the default device, without running it, and returns the cost of a call.

    Args:
        function: any function that `jax.jit` takes.
        arguments: its arguments, arrays or their shapes (`jax.ShapeDtypeStruct`).
    """
    traced = jax.jit(function).trace(*arguments)
    compiled = traced.lower().compile()
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    assert analysis is not None and memory is not None  # all of jax's own backends have both
    once, all_trips = _work(traced.jaxpr.jaxpr)
    ratio = all_trips / np.maximum(once, 1.0)
    return ProgramCost(
        flops=analysis.get("flops", 0.0) * float(ratio[0]),
        bytes=analysis.get("bytes accessed", 0.0) * float(ratio[1]),
        kernels=count_kernels(compiled.as_text() or ""),
        memory=memory.peak_memory_in_bytes,
    )


def nbytes(tree: Any) -> int:
    """Bytes of a pytree of arrays or their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _work(jaxpr: Any) -> tuple[np.ndarray, np.ndarray]:
    """Operations and bytes of a traced program, with every loop body once, and as often as it runs."""
    once, all_trips = np.zeros(2), np.zeros(2)
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        trips = {"scan": params.get("length"), "while": DATA_DEPENDENT_TRIPS}.get(name, 1)
        inner = [_work(body) for body in _bodies(params)]
        if name == "cond":
            inner = [max(inner, key=lambda work: work[1][0])]
        if not inner:
            leaf = _leaf(equation)
            inner, trips = [(leaf, leaf)], 1
        once += sum(each[0] for each in inner)
        all_trips += trips * sum(each[1] for each in inner)
    return once, all_trips


def _bodies(params: dict[str, Any]) -> Iterator[Any]:
    """The programs inside of an equation of a program, but for the operation that a scatter applies to each entry."""
    values = [value for name, value in params.items() if name != "update_jaxpr"]
    for value in jax.tree.leaves(values, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
        body = getattr(value, "jaxpr", value)
        if hasattr(body, "eqns"):
            yield body


def _leaf(equation: Any) -> np.ndarray:
    """Operations and bytes of an equation without a program inside."""
    shapes = [
        [each.aval for each in side if hasattr(each.aval, "dtype")] for side in (equation.invars, equation.outvars)
    ]
    operations = sum(math.prod(aval.shape) for aval in shapes[1])
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        operations *= 2 * math.prod(shapes[0][0].shape[axis] for axis in contracted)
    return np.array([operations, sum(math.prod(a.shape) * a.dtype.itemsize for side in shapes for a in side)], float)


def count_kernels(text: str) -> float:
    """Kernels that an optimised XLA program starts: its instructions outside of fusions, loops as often as they run."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name = start[2]
            computations[name] = []
            entry = name if start[1] else entry
        elif name:
            computations[name].append(line)

    def count(name: str) -> float:
        total = 0.0
        for line in computations.get(name, ()):
            operation = _OPERATION.search(line)
            if operation is None:
                continue
            if operation[1] not in _FREE:
                total += 1
                continue
            called = [count(each) for each in _CALLED.findall(line)]
            if operation[1] == "while":
                trips = _TRIPS.search(line)
                total += sum(called) * (int(trips[1]) if trips else DATA_DEPENDENT_TRIPS)
            elif operation[1] == "conditional":
                branches = _BRANCHES.search(line)
                called += [count(each.strip(" %")) for each in branches[1].split(",")] if branches else []
                total += max(called, default=0.0)
            else:
                total += sum(called)
        return total

    return count(entry)
