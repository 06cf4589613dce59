"""Downloads from a fake hub: zips are checked and unpacked, or refused in one line."""

import stat
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from coda_jax.data.vault import read_vault, write_vault
from experiments.datasets.download import download_vaults, unpack
from experiments.host.errors import UserError
from tests.drift import SPEC, noise_episodes


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The zip of a scenario with two vaults, in the layout of the hub."""
    folder = tmp_path_factory.mktemp("hub")
    for name in ("Good", "Poor"):
        write_vault(folder / "2cheetah.vlt" / name, noise_episodes(SPEC, 3, 5))
    with zipfile.ZipFile(folder / "2cheetah.zip", "w") as opened:
        for file in sorted(folder.glob("*.vlt/**/*")):
            opened.write(file, file.relative_to(folder))
    return folder / "2cheetah.zip"


class Hub:
    """Fake `hf_hub_download`: writes a file below `local_dir`, and keeps partial downloads there."""

    def __init__(self, archive, broken_off: int = 0):
        self.content, self.broken_off, self.asked = archive.read_bytes(), broken_off, []

    def __call__(self, *, repo_id, repo_type, filename, local_dir):
        self.asked.append((repo_id, repo_type, filename))
        target = Path(local_dir, filename)
        partial = target.with_suffix(".incomplete")
        target.parent.mkdir(parents=True, exist_ok=True)
        arrived = partial.read_bytes() if partial.exists() else b""
        half = len(self.content) // 2
        if self.broken_off:
            self.broken_off -= 1
            partial.write_bytes(self.content[:half])
            raise ConnectionError("Connection reset by peer\nwhile reading")
        self.resumed_from = len(arrived)
        target.write_bytes(arrived + self.content[len(arrived) :])
        return str(target)


def test_a_download_leaves_only_the_vaults(tmp_path, archive):
    hub = Hub(archive)
    path = download_vaults("mamujoco", "2cheetah", tmp_path, hub)
    assert hub.asked == [("InstaDeepAI/og-marl", "dataset", "core/mamujoco/2cheetah.zip")]
    assert path == tmp_path / "mamujoco" / "2cheetah.vlt"
    np.testing.assert_array_equal(read_vault(path / "Good").state, noise_episodes(SPEC, 3, 5).state)
    assert sorted(entry.name for entry in path.iterdir()) == ["Good", "Poor"]
    assert [entry.name for entry in path.parent.iterdir()] == ["2cheetah.vlt"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["mamujoco"]


def test_existing_vaults_are_not_downloaded_again(tmp_path, archive):
    (tmp_path / "mamujoco" / "2cheetah.vlt").mkdir(parents=True)
    hub = Hub(archive)
    assert download_vaults("mamujoco", "2cheetah", tmp_path, hub).is_dir() and hub.asked == []


def test_an_interrupted_download_is_resumed(tmp_path, archive):
    hub = Hub(archive, broken_off=1)
    with pytest.raises(UserError, match=r"Connection reset by peer\).*same command to go on") as caught:
        download_vaults("mamujoco", "2cheetah", tmp_path, hub)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mamujoco").exists()
    download_vaults("mamujoco", "2cheetah", tmp_path, hub)
    assert hub.resumed_from == len(hub.content) // 2


def test_a_missing_extra_is_a_one_line_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'coda-jax\[data\]'"):
        download_vaults("mamujoco", "2cheetah", tmp_path)
    assert list(tmp_path.iterdir()) == []


def zip_of(path, members):
    with zipfile.ZipFile(path, "w") as opened:
        for member, content in members:
            opened.writestr(member, content)
    return path


def a_link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    ("member", "content", "words"),
    [
        ("../escaped", b"x", "outside"),
        ("good/../../escaped", b"x", "outside"),
        ("/tmp/coda-jax-escaped", b"x", "outside"),
        ("..\\escaped", b"x", "outside"),
        ("C:\\escaped", b"x", "outside"),
        (a_link("good/link"), b"/etc", "link"),
        ("good", b"a file where a folder is", "damaged"),
    ],
)
def test_zips_with_unsafe_members_are_refused_and_removed(tmp_path, member, content, words):
    archive = zip_of(tmp_path / "hostile.zip", [("good/metadata.json", b"{}"), (member, content)])
    with pytest.raises(UserError, match=words) as caught:
        download_vaults("mamujoco", "good", tmp_path / "vaults", lambda **_: str(archive))
    assert "\n" not in str(caught.value) and str(archive) in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]
    assert not (tmp_path.parent / "escaped").exists()


def test_a_damaged_zip_is_refused(tmp_path, archive):
    content = bytearray(archive.read_bytes())
    for name, damaged in {
        "cut": content[: len(content) // 2],
        "flipped": content[:2000] + bytes([content[2000] ^ 16]) + content[2001:],
    }.items():
        (tmp_path / name).write_bytes(bytes(damaged))
        with pytest.raises(UserError, match="is damaged"):
            unpack(tmp_path / name, tmp_path / "folder")


def test_a_zip_larger_than_the_disk_is_refused(tmp_path, archive, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="GB unpacked"):
        unpack(archive, tmp_path / "folder")


@pytest.mark.parametrize(
    ("files", "words"),
    [(["README.md"], "no vault"), (["a/Good/metadata.json", "b/Good/metadata.json"], "vaults in several folders")],
)
def test_a_zip_without_one_folder_of_vaults_is_refused(tmp_path, files, words):
    archive = zip_of(tmp_path / "other.zip", [(file, b"{}") for file in files])
    with pytest.raises(UserError, match=words):
        download_vaults("mamujoco", "2cheetah", tmp_path / "vaults", lambda **_: str(archive))
    assert not (tmp_path / "vaults" / "mamujoco" / "2cheetah.vlt").exists()
