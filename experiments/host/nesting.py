"""How deep the contents of a file may be nested: those of damaged files can be nested without end."""

from collections.abc import Mapping
from typing import Any

DEEPEST = 32
"""Levels of mappings and lists within each other that files may have."""


def check_nesting(content: Any) -> None:
    """Refuses contents of JSON or YAML that are nested too deeply, or contain themselves through an alias of YAML.

    Raises:
        ValueError: there are more than `DEEPEST` levels.
    """
    level = [content] if isinstance(content, Mapping | list) else []
    for _ in range(DEEPEST):
        inner: dict[int, Any] = {}  # by identity: an alias is looked at once a level
        for container in level:
            values = container.values() if isinstance(container, Mapping) else container
            inner |= {id(value): value for value in values if isinstance(value, Mapping | list)}
        if not inner:
            return
        level = list(inner.values())
    raise ValueError(f"it is nested more than {DEEPEST} levels deep, or contains itself")
