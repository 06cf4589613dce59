"""The text of `--help`: tyro's, without empty defaults, and with its head broken at the width of the screen.

A default of None or of no values is not shown: the docstrings of such fields say what happens by default.
"""

import dataclasses
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def choices(names: Iterable[str]) -> Any:
    """For the annotation of a flag whose values are names that its command checks: the help shows them."""
    return tyro.conf.arg(metavar=f"{{{','.join(names)}}}")


def help_registry() -> ConstructorRegistry:
    """Rules for tyro by which dataclasses are parsed as usual, and fields without a default value have a clear help."""
    registry, is_asking_others = ConstructorRegistry(), False

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal is_asking_others
        if is_asking_others or not dataclasses.is_dataclass(info.type):
            return None
        is_asking_others = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            is_asking_others = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        return dataclasses.replace(spec, fields=tuple(map(_with_clear_help, spec.fields)))

    return registry


def _with_clear_help(field: StructFieldSpec) -> StructFieldSpec:
    field = dataclasses.replace(field, helptext=_one_paragraph(field.helptext))
    if field.default is not None and field.default != ():
        return field
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(field.type, set()))
    metavar = None
    if field.default is None and isinstance(spec, PrimitiveConstructorSpec):
        metavar = spec.metavar.replace("{None}|", "").replace("{None,", "{")
    clear = tyro.conf.arg(metavar=metavar, help_behavior_hint=lambda default: "")
    return dataclasses.replace(field, type=Annotated[field.type, clear])


def _one_paragraph(text: str | Callable[[], str | None] | None) -> Callable[[], str | None]:
    """The docstring of a field in one line: tyro keeps its line breaks before quotes, brackets and digits."""

    def joined() -> str | None:
        found = text() if callable(text) else text
        return None if found is None else " ".join(found.split())

    return joined


class HelpScreen(io.StringIO):
    """Stands in for stdout while tyro prints its help, with the colours and the encoding of stdout."""

    def __init__(self):
        """Stands in for the present stdout."""
        super().__init__()
        self._stdout = sys.stdout

    def isatty(self) -> bool:
        """Whether the help goes to a terminal."""
        return self._stdout.isatty()

    @property
    def encoding(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoding of stdout, by which tyro chooses the lines of its boxes."""
        return self._stdout.encoding

    def show(self) -> None:
        """Prints the help; what stands above the boxes is broken at the width of the screen."""
        lines, width = self.getvalue().rstrip("\n").split("\n"), shutil.get_terminal_size().columns
        plain = [_ANSI.sub("", line) for line in lines]
        head = next((number for number, line in enumerate(plain) if line[:1] in ("╭", " ")), len(lines))
        shown: list[str] = []
        for number, line in enumerate(lines[:head]):
            if line or (shown and shown[-1]):
                indent = "    " if plain[number].startswith("usage") else ""
                shown += textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
        print("\n".join([*shown, *lines[head:]]))
