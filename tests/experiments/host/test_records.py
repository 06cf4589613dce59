import json
from typing import Literal

import pytest
import yaml

from experiments.host.errors import UserError
from experiments.host.files import read_sealed, write_sealed
from experiments.host.records import conforms, parse_file, parse_mapping


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
    for content in ("[" * 10**4, "a: [", "2001-99-99", "!!python/object:os.system {}"):
        file.write_text(content)
        with pytest.raises(UserError, match="cannot be read"):
            parse_file(file, yaml.safe_load, "remove it")


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
