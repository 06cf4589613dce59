import dataclasses
import enum
import errno
import io
import os
import tempfile
import threading
from pathlib import Path

import jax
import pytest

from experiments.host import cache
from experiments.host.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    rates: tuple[float, ...] = (0.1, 1e-6)
    where: Path = Path("a/b")


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str = "x"
    inner: Inner = Inner()
    limit: int | None = None


class Kind(enum.Enum):
    HEUN = 1


def test_the_environment_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("CODA_JAX_CACHE", str(tmp_path / "mine"))
    assert cache.cache_folder() == tmp_path / "mine"
    assert list((tmp_path / "mine").iterdir()) == []  # made, and probed without a trace


def test_the_default_folder_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("CODA_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "coda-jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "coda-jax"


def test_a_folder_that_cannot_be_made_is_one_clear_error(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CODA_JAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"file/cache cannot be written \(not a directory\).*set CODA_JAX_CACHE"):
        cache.cache_folder()


class FullDisk(io.BytesIO):
    """A temporary file on a full disk."""

    def __init__(self, **_):
        super().__init__()

    def write(self, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_noticed_before_anything_is_built(monkeypatch, tmp_path):
    monkeypatch.setenv("CODA_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", FullDisk)
    with pytest.raises(UserError, match="no space left on device"):
        cache.cache_folder()


def test_compiled_programs_go_into_the_cache(monkeypatch, tmp_path):
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    monkeypatch.setenv("CODA_JAX_CACHE", str(tmp_path))
    cache.enable_compilation_cache()
    assert updates["jax_compilation_cache_dir"] == str(tmp_path / "xla")
    assert updates["jax_persistent_cache_min_compile_time_secs"] == 0


def test_a_key_depends_on_content_alone():
    assert cache.key_of(Outer()) == cache.key_of(Outer(inner=Inner(where=Path("a/b"))))
    assert cache.key_of({"a": 1, "b": 2}) == cache.key_of({"b": 2, "a": 1})
    assert cache.key_of(Outer()) == cache.key_of(cache.plain(Outer()))
    assert cache.key_of(Outer()) != cache.key_of(Outer(inner=Inner(rates=(0.1, 2e-6))))
    assert len(cache.key_of(Outer())) == 12


def test_a_key_is_the_same_in_every_process():
    assert cache.key_of({"guidance": 0.6}) == "4d926840af83"


def test_entries_of_other_formats_versions_and_backends_have_other_keys(monkeypatch):
    keys = {cache.cache_key({"a": 1}), cache.cache_key({"a": 2})}
    for change in [
        (cache, "FORMAT", 0),
        (cache.jax, "__version__", "0.0.1"),
        (cache.jax, "default_backend", lambda: "other"),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(*change)
            keys.add(cache.cache_key({"a": 1}))
    assert len(keys) == 5
    assert cache.cache_key({"a": 1}) in keys


def test_entries_of_other_random_numbers_have_other_keys_and_usual_ones_keep_theirs():
    usual = cache.cache_key({"a": 1})
    surroundings = {"format": cache.FORMAT, "jax": jax.__version__, "backend": jax.default_backend()}
    assert usual == cache.key_of({**surroundings, "config": {"a": 1}})
    keys = {usual}
    for change in (jax.threefry_partitionable(False), jax.default_prng_impl("rbg")):
        with change:
            keys.add(cache.cache_key({"a": 1}))
    jax.config.update("jax_random_seed_offset", 1)
    try:
        keys.add(cache.cache_key({"a": 1}))
    finally:
        jax.config.update("jax_random_seed_offset", 0)
    assert len(keys) == 4


def test_plain_values():
    assert cache.plain(Outer()) == {"name": "x", "inner": {"rates": [0.1, 1e-6], "where": "a/b"}, "limit": None}
    assert cache.plain(Kind.HEUN) == "HEUN"
    with pytest.raises(TypeError, match="function"):
        cache.plain({"guide": lambda: None})


def test_a_waiting_process_prints_what_it_waits_for(tmp_path, capsys):
    order = []

    def wait():
        with cache.lock(tmp_path / "entry", "the dataset replay"):
            order.append("second")

    with cache.lock(tmp_path / "entry", "the dataset replay"):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert "waiting for another process that builds the dataset replay" in capsys.readouterr().out


def test_entries_of_an_accelerator_have_names_of_their_own(monkeypatch):
    assert cache.backend_identity("default") == {}  # on a CPU, as before

    class Device:
        device_kind = "NVIDIA H100"

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Device])
    assert cache.backend_identity() == {"device": "NVIDIA H100"}
    assert cache.backend_identity("high") == {"device": "NVIDIA H100", "precision": "high"}
