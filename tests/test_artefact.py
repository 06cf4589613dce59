"""Artefacts: any flipped bit is refused or changes nothing; entries that are lost or cut are noticed."""

import io
import json
import zipfile

import numpy as np
import pytest

from coda_jax.artefact import FORMAT, ArtefactError, read_artefact, write_artefact

ARRAYS = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "b": np.array([True, False])}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "thing.npz"
    write_artefact(path, "thing", {"seeds": [0, 1]}, ARRAYS)
    return path


def is_whole(path) -> bool:
    description, arrays = read_artefact(path, "thing")
    np.testing.assert_equal(arrays, ARRAYS)
    assert arrays["a"]["kernel"].dtype == np.float32
    return description == {"seeds": [0, 1]}


def without(content: bytes, name: str) -> bytes:
    """The archive without an entry, as a program that repairs archives writes it."""
    kept = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(kept, "w") as new:
        for entry in old.infolist():
            if entry.filename != name:
                new.writestr(entry.filename, old.read(entry))
    return kept.getvalue()


def every_bit(path, bits) -> int:
    """Flips each bit; returns how many were refused. The others must change nothing that is read."""
    content, refused = path.read_bytes(), 0
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert is_whole(path), bit
        except ArtefactError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1 and str(path) in str(error)
    path.write_bytes(content)
    return refused


def test_an_artefact_is_read_as_it_was_written(file):
    assert is_whole(file)
    with np.load(file) as stored:  # without this package
        assert json.loads(str(stored["description"]))["arrays"] == {"a/kernel": ["float32", [2, 3]], "b": ["bool", [2]]}


def test_some_flipped_bits_are_refused_or_harmless(file):
    num_bits = 8 * len(file.read_bytes())
    assert every_bit(file, range(0, num_bits, 41)) > num_bits / 41 / 2


@pytest.mark.slow
def test_every_flipped_bit_is_refused_or_harmless(file):
    num_bits = 8 * len(file.read_bytes())
    assert every_bit(file, range(num_bits)) > num_bits / 2


@pytest.mark.parametrize("length", [0, 1, 30, 200, -1, -22, -60])
def test_truncated_files_are_refused(file, length):
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ArtefactError, match="is no thing, or damaged"):
        read_artefact(file, "thing")


@pytest.mark.parametrize("name", ["a/kernel", "b"])
def test_a_lost_array_is_refused(file, name):
    file.write_bytes(without(file.read_bytes(), f"{name}.npy"))
    with pytest.raises(ArtefactError, match=f"its array {name} is missing"):
        read_artefact(file, "thing")


def test_a_header_that_asks_for_fewer_bytes_is_refused(file):
    write_artefact(file, "thing", {}, {"a": np.zeros((400, 400), np.float32)})
    file.write_bytes(file.read_bytes().replace(b"'shape': (400, 400)", b"'shape': (100, 400)"))
    with np.load(file) as stored:
        assert stored["a"].shape == (100, 400)  # numpy itself reads a quarter, and never compares the CRC-32
    with pytest.raises(ArtefactError, match="CRC"):
        read_artefact(file, "thing")


def test_artefacts_without_a_list_of_arrays_are_read(file):
    np.savez(file, description=np.asarray(json.dumps({"kind": "thing", "format": FORMAT})), b=np.ones(2))
    assert read_artefact(file, "thing")[1]["b"].tolist() == [1.0, 1.0]


def test_a_nested_description_is_one_line(file):
    np.savez(file, description=np.asarray("[" * 100_000))
    with pytest.raises(ArtefactError, match="is no thing, or damaged"):
        read_artefact(file, "thing")
