import json
from typing import Literal

import pytest

from experiments.host.errors import UserError
from experiments.host.files import opened_atomically, read_sealed, stamp, write_sealed
from experiments.host.nesting import DEEPEST, check_nesting
from experiments.host.records import conforms, parse_file, parse_mapping, write_record
from experiments.host.yaml_files import parse_yaml


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True),
        (1, float, True),
        (1.5, int, False),
        (True, int, False),
        (True, bool, True),
        ("1", float, False),
        (None, float | None, True),
        ("x", float | None, False),
        *((value, float | Literal["auto"], value != "x") for value in (1, 0.5, "auto", "x")),
        ([1, 2], list[int], True),
        ([1, "2"], list[int], False),
        (1, list[int], False),
        ([], list, True),
        ({"a": {"b": 1}}, dict[str, dict[str, float]] | None, True),
        ({"a": {"b": None}}, dict[str, dict[str, float]] | None, False),
        ({"a": 1}, dict[str, dict[str, float]], False),
    ],
)
def test_types_of_json(value, hint, expected):
    assert conforms(value, hint) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff", "cannot be read"),
        (b"{", "cannot be read"),
        (b"[" * 10**5, "cannot be read"),
        (b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "nested more than"),
        (b"3", "no mapping"),
        (b"{}", "no seeds"),
        (b'{"seeds": {}}', "seeds is {}"),
    ],
)
def test_damage_is_one_line_with_advice(tmp_path, content, words):
    file = tmp_path / "summary.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        parse_mapping(file, json.loads, {"seeds": list[int]}, "remove it")
    message = str(error.value)
    assert words in message and str(file) in message and message.endswith("; remove it") and "\n" not in message


def test_deep_or_odd_yaml_is_one_line(tmp_path):
    file = tmp_path / "config.yaml"
    odd = ("[" * 10**4, "a: [", "2001-99-99", "!!python/object:os.system {}", "!!int ''", "!!timestamp x", "!!bool x")
    for content in (*odd, "a: 1\na: 2", *CONTAIN_THEMSELVES):
        file.write_text(content)
        with pytest.raises(UserError, match="cannot be read") as error:
            parse_file(file, parse_yaml, "remove it")
        assert len(str(error.value).splitlines()) == 1


CONTAIN_THEMSELVES = (
    *("a: &a [*a]", "&a {b: *a}", "a: &a [[1, *a]]", "&a [*a]", "a: &a {b: {c: [*a]}}"),
    "&a {? *a : 1}",
)


def test_aliases_that_end_are_read():
    assert parse_yaml("a: &a [1]\nb: [*a, *a]\nc: {<<: {d: 2}}") == {"a": [1], "b": [[1], [1]], "c": {"d": 2}}


def test_a_file_that_is_not_written_to_its_end_is_not_replaced(tmp_path):
    path = tmp_path / "arrays.npz"
    for content in (b"old", b"new"):
        with opened_atomically(path) as file:
            file.write(content)
    with pytest.raises(OSError, match="full"), opened_atomically(path) as file:
        file.write(b"half")
        raise OSError("the disk is full")
    assert path.read_bytes() == b"new"


def test_nesting_has_a_limit():
    content = 1
    for _ in range(DEEPEST):
        content = [content]
    check_nesting(content)
    with pytest.raises(ValueError, match="nested"):
        check_nesting({"a": content})
    for _ in range(28):
        content = [content] * 2  # 2 ** 28 paths to the same lists
    with pytest.raises(ValueError, match="nested"):
        check_nesting(content)


def test_every_flipped_bit_of_a_record_is_refused_or_harmless(tmp_path):
    file, values = tmp_path / "1.json", {"seconds": 1.5, "returns": [1, 2.25], "of": None}
    write_record(file, values)
    whole, refused = file.read_bytes(), 0
    assert parse_mapping(file, json.loads, {"seconds": float}, "remove it") == values
    for position in range(len(whole)):
        for bit in range(8):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            try:
                found = parse_mapping(file, json.loads, {}, "remove it")
                assert {name: value for name, value in found.items() if name in values} == values
            except UserError:
                refused += 1
    assert refused > 6 * len(whole)


def test_every_flipped_bit_of_a_stamped_text_is_refused_or_harmless(tmp_path):
    file, values = tmp_path / "config.yaml", {"seed": 12, "learner": {"rate": 0.5}}
    file.write_text(stamp("seed: 12\nlearner: {rate: 0.5}\n"))
    whole = file.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            try:
                found = parse_mapping(file, parse_yaml, {}, "remove it")  # without its #, the first line is a key
                assert {name: value for name, value in found.items() if name in values} == values
            except UserError as error:
                assert len(str(error).splitlines()) == 1


def test_every_flipped_bit_and_truncation_of_a_sealed_text_is_noticed(tmp_path):
    file, text = tmp_path / "1.json", json.dumps({"notes": {"seconds": 1.5}, "sha256": {}}, indent=1)
    write_sealed(file, text)
    whole = file.read_bytes()
    assert read_sealed(file) == text
    for position in range(len(whole)):
        for bit in range(8):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            with pytest.raises(ValueError, match=r"digest|decode|JSON|Expecting|column"):
                json.loads(read_sealed(file))
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        if length == len(text):  # exactly the digest is missing: the text of an older version, and complete
            assert read_sealed(file) == text
            continue
        with pytest.raises(ValueError, match=r"digest|Expecting|column"):
            json.loads(read_sealed(file))
