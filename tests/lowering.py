"""Collects the jitted programs that a command calls, and lowers them for accelerators that are not there."""

import contextlib
from typing import Any

import jax
import jax.export

ACCELERATORS = ("cuda", "tpu")


class _Recorded:
    """A jitted function that records the shapes of its arguments at each call or lowering."""

    def __init__(self, program: Any, name: str, found: dict):
        self._program, self._name, self._found = program, name, found

    def _record(self, args: tuple, kwargs: dict) -> None:
        leaves = jax.tree.leaves((args, kwargs))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return  # a part of another program
        shapes = str([(getattr(leaf, "shape", ()), str(getattr(leaf, "dtype", type(leaf)))) for leaf in leaves])
        key = self._name, shapes, id(self._program)  # closures of one name are different programs
        if key not in self._found:
            abstract = jax.tree.map(lambda x: jax.typeof(x) if hasattr(x, "dtype") else x, (args, kwargs))
            self._found[key] = (self._program, *abstract)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._record(args, kwargs)
        return self._program(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        self._record(args, kwargs)
        return self._program.lower(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)


@contextlib.contextmanager
def recorded_programs(patch):
    """While it lasts, every function that is jitted by `jax.jit` and then called is recorded, with its shapes.

    Args:
        patch: pytest's `MonkeyPatch`.
    """
    found: dict[tuple[str, str, int], tuple] = {}
    jit = jax.jit

    def recording_jit(function: Any, **settings: Any) -> _Recorded:
        inner = getattr(function, "func", function)  # of a functools.partial
        name = f"{inner.__module__}.{getattr(inner, '__qualname__', type(inner).__name__)}"
        return _Recorded(jit(function, **settings), name, found)

    with patch.context() as local:
        local.setattr(jax, "jit", recording_jit)
        yield found


def lower_for_accelerators(found: dict[tuple[str, str, int], tuple]) -> None:
    """Lowers recorded programs for CUDA and TPU, and asserts that none has host callbacks or effects."""
    assert found
    with jax.debug_key_reuse(False):
        for program, args, kwargs in found.values():
            exported = jax.export.export(program, platforms=ACCELERATORS)(*args, **kwargs)
            assert exported.platforms == ACCELERATORS
            assert "callback" not in str(program.trace(*args, **kwargs).jaxpr)
            assert not exported.ordered_effects and not exported.unordered_effects
