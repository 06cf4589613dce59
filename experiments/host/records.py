"""Reading the files of run folders: damage of any kind (truncation, flipped bits, wrong types) is one line."""

import csv
import hashlib
import json
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from experiments.host.errors import UserError
from experiments.host.files import read_stamped, verify, write_atomically
from experiments.host.nesting import check_nesting

Content = TypeVar("Content")

_DIGEST = "sha256"
"""The field of a record that holds the checksum of the others."""


def parse_file(file: Path, parse: Callable[[str], Content], advice: str) -> Content:
    """Reads a text file of a run folder and verifies it against the folder's checksums and its own (`files.stamp`).

    Args:
        file: the file, in UTF-8.
        parse: converts the text.
        advice: the end of the message: what to do about a damaged file.

    Raises:
        UserError: the file is damaged.
        OSError: the file cannot be read.
    """
    verify(file, advice)
    try:
        content = parse(read_stamped(file)[0])
        check_nesting(content)
        return content
    except (ValueError, OverflowError, RecursionError, csv.Error) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}; {advice}") from error


def parse_mapping(file: Path, parse: Callable[[str], Any], fields: Mapping[str, Any], advice: str) -> dict[str, Any]:
    """Reads a file that holds a mapping with certain fields, and verifies it if `write_record` wrote it.

    Args:
        file: the file, in UTF-8.
        parse: converts the text, such as `json.loads`.
        fields: the type of each field that must be there, such as `list[int]` or `float | None`.
        advice: the end of the message: what to do about a damaged file.

    Raises:
        UserError: the file is damaged, or lacks a field, or a field is of another type.
        OSError: the file cannot be read.
    """
    found = parse_file(file, parse, advice)
    if not isinstance(found, dict):
        raise UserError(f"{file} cannot be read: it holds no mapping; {advice}")
    recorded = found.pop(_DIGEST, None)
    if recorded is not None and recorded != _digest_of(found):
        raise UserError(f"{file} is damaged: it does not match its {_DIGEST}; {advice}")
    missing = sorted(set(fields) - set(found))
    if missing:
        raise UserError(f"{file} is not of this version: it has no {', '.join(missing)}; {advice}")
    for name, hint in fields.items():
        if not conforms(found[name], hint):
            raise UserError(f"{file} is damaged: {name} is {json.dumps(found[name], default=str)[:60]}; {advice}")
    return found


def write_record(file: Path, values: Mapping[str, Any]) -> None:
    """Writes a mapping as JSON, atomically, with the SHA-256 of the other fields in the field `sha256`."""
    write_atomically(file, json.dumps({**values, _DIGEST: _digest_of(values)}, indent=1) + "\n")


def _digest_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def conforms(value: Any, hint: Any) -> bool:
    """Whether a value of JSON has a type: a class, `Literal`, union, `list[...]` or `dict[str, ...]`.

    An int is also a float.
    """
    arguments = typing.get_args(hint)
    match typing.get_origin(hint) or hint:
        case union if union in (types.UnionType, typing.Union):
            return any(conforms(value, one) for one in arguments)
        case typing.Literal:
            return value in arguments
        case builtin if builtin is list and arguments:
            return isinstance(value, list) and all(conforms(item, arguments[0]) for item in value)
        case builtin if builtin is dict and arguments:
            return isinstance(value, dict) and all(conforms(item, arguments[1]) for item in value.values())
        case types.NoneType:
            return value is None
        case builtin if builtin in (int, float):
            return isinstance(value, int | builtin) and not isinstance(value, bool)
        case kind:
            return isinstance(value, kind)
