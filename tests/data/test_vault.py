"""Vaults on disk: exact round trips, and one-line errors for every defect."""

import asyncio
import contextlib
import io
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest
import tensorstore
from flashbax.vault import Vault

from coda_jax.data.dataset import episodes_from_arrays, statistics
from coda_jax.data.vault import VaultError, read_vault, write_vault
from coda_jax.types import TaskSpec
from tests.vaults import write_with_flashbax

TASK = TaskSpec(name="toy", num_agents=2, state_dim=5, obs_dim=3, action_dim=1, episode_length=4)


def random_episodes(num_steps=10, num_agents=2, obs_dim=3, action_dim=1, state_dim=5, seed=0):
    rng = np.random.default_rng(seed)
    return episodes_from_arrays(
        state=rng.normal(size=(num_steps, state_dim)),
        obs=rng.normal(size=(num_steps, num_agents, obs_dim)),
        action=rng.uniform(-1, 1, size=(num_steps, num_agents, action_dim)),
        reward=rng.normal(size=num_steps),
        terminal=rng.random(num_steps) < 0.2,
        truncation=rng.random(num_steps) < 0.2,
    )


def og_marl_experience(num_steps=10, **leaves):
    """One recording in the layout of OG-MARL; `leaves` replaces leaves, None removes one."""
    rng = np.random.default_rng(1)
    experience = {
        "observations": rng.normal(size=(1, num_steps, 2, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(1, num_steps, 2, 1)).astype(np.float32),
        "rewards": np.repeat(rng.normal(size=(1, num_steps, 1)), 2, axis=2).astype(np.float32),
        "terminals": np.zeros((1, num_steps, 2), bool),
        "truncations": np.zeros((1, num_steps, 2), bool),
        "infos": {"state": rng.normal(size=(1, num_steps, 5)).astype(np.float32)},
    }
    return {name: leaf for name, leaf in (experience | leaves).items() if leaf is not None}


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def read_error(path, task=None):
    """The error message of reading, checked to be one line with the path."""
    with pytest.raises(VaultError) as caught:
        read_vault(path, task)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and len(message) < 600
    return message


@pytest.fixture(scope="module")
def own_vault(tmp_path_factory):
    """A vault written by this package; copy it before damaging it."""
    path = tmp_path_factory.mktemp("own") / "toy.vlt" / "replay"
    assert write_vault(path, random_episodes())
    return path


@pytest.fixture(scope="module")
def foreign_vault(tmp_path_factory):
    """A vault written by flashbax, without a card; copy it before damaging it."""
    path = tmp_path_factory.mktemp("foreign") / "toy.vlt" / "Replay"
    write_with_flashbax(path, og_marl_experience(), 10)
    return path


@pytest.mark.parametrize(
    "shape",
    [
        {"num_steps": 1},
        {"num_steps": 50, "num_agents": 1, "action_dim": 4},
        {"num_steps": 200, "num_agents": 4, "obs_dim": 18, "action_dim": 2, "state_dim": 27},
        {"num_steps": 120, "num_agents": 101, "obs_dim": 101},  # two chunks of observations, 102 steps in the first
    ],
)
def test_round_trip_is_exact(tmp_path, shape):
    episodes = random_episodes(**shape)
    path = tmp_path / "env" / "scenario.vlt" / "uid"
    assert write_vault(path, episodes)
    assert_equal(read_vault(path), episodes)
    assert_equal(read_vault(path.parent), episodes)
    assert os.listdir(path.parent) == ["uid"]


def test_round_trip_of_zeros(tmp_path):
    zeros = jax.tree.map(np.zeros_like, random_episodes())
    zeros.truncation[-1] = 1
    write_vault(tmp_path / "zeros", zeros)
    assert_equal(read_vault(tmp_path / "zeros"), zeros)


def test_flashbax_reads_our_vaults(own_vault, capsys):
    with contextlib.redirect_stdout(io.StringIO()):
        vault = Vault(own_vault.parent.name, rel_dir=str(own_vault.parent.parent), vault_uid=own_vault.name)
    experience = vault.read().experience
    episodes = random_episodes()
    np.testing.assert_array_equal(experience["observations"][0], episodes.obs)
    np.testing.assert_array_equal(experience["infos"]["state"][0], episodes.state)
    np.testing.assert_array_equal(experience["rewards"][0], np.stack([episodes.reward] * 2, axis=-1))
    np.testing.assert_array_equal(experience["terminals"][0, :, 1], episodes.terminal)
    assert capsys.readouterr().out == ""


def test_vaults_of_flashbax_are_read_and_episodes_end_where_any_agent_ends(tmp_path, foreign_vault):
    experience = og_marl_experience(num_steps=20)
    experience["terminals"][0, 3, 1] = True
    experience["truncations"][0, 8, 0] = True
    write_with_flashbax(tmp_path / "other.vlt" / "Good", experience, 20)
    episodes = read_vault(tmp_path / "other.vlt", TASK)
    np.testing.assert_array_equal(episodes.bounds, [0, 4, 9, 20])
    np.testing.assert_array_equal(np.flatnonzero(episodes.terminal), [3])
    np.testing.assert_array_equal(np.flatnonzero(episodes.truncation), [8, 19])  # the unfinished last episode is kept
    np.testing.assert_array_equal(episodes.state, experience["infos"]["state"][0])
    np.testing.assert_array_equal(episodes.obs, experience["observations"][0])
    np.testing.assert_array_equal(episodes.action, experience["actions"][0])
    np.testing.assert_array_equal(episodes.reward, experience["rewards"][0, :, 0])


def test_other_numeric_types_and_extra_leaves_are_accepted(tmp_path):
    experience = og_marl_experience(terminals=np.zeros((1, 10, 2), np.float32))
    experience["infos"]["legals"] = np.ones((1, 10, 2, 4), bool)
    experience["actions"][0, 2] = 1 + 5e-5  # within the tolerance for rounding
    write_with_flashbax(tmp_path / "a" / "b", experience, 7)
    episodes = read_vault(tmp_path / "a" / "b")
    assert len(episodes.reward) == 7 and episodes.terminal.dtype == np.float32
    np.testing.assert_array_equal(episodes.action[2], 1.0)


def test_the_card_has_statistics_and_provenance(tmp_path):
    episodes = random_episodes()
    write_vault(tmp_path / "v", episodes, provenance={"teams": 4, "noise": 0.2})
    card = json.loads((tmp_path / "v" / "card.json").read_text())
    assert card["statistics"] == statistics(episodes)
    assert card["provenance"] == {"teams": 4, "noise": 0.2}


def test_writing_prints_nothing_and_works_in_a_running_event_loop(tmp_path, capsys):
    async def as_in_a_notebook():
        return write_vault(tmp_path / "v", random_episodes())

    assert asyncio.run(as_in_a_notebook())
    read_vault(tmp_path / "v")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_an_existing_vault_is_never_changed(tmp_path):
    first = random_episodes(seed=1)
    assert write_vault(tmp_path / "v", first)
    assert not write_vault(tmp_path / "v", random_episodes(seed=2))
    assert_equal(read_vault(tmp_path / "v"), first)
    assert os.listdir(tmp_path) == ["v"]


def test_two_processes_at_once_leave_one_whole_vault(tmp_path):
    program = """if True:
        import sys
        import numpy as np
        from coda_jax.data.dataset import episodes_from_arrays
        from coda_jax.data.vault import write_vault
        zeros = np.zeros((5000, 2, 3))
        theirs = episodes_from_arrays(zeros[:, 0] + 2, zeros, zeros, zeros[:, 0, 0], *np.zeros((2, 5000)))
        print("ready", flush=True)
        sys.stdin.readline()
        print(write_vault(sys.argv[1], theirs))
    """
    path = tmp_path / "x.vlt" / "v"
    zeros = np.zeros((5000, 2, 3))
    ours = episodes_from_arrays(zeros[:, 0] + 1, zeros, zeros, zeros[:, 0, 0], *np.zeros((2, 5000)))
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        we_won = write_vault(path, ours)
        they_won = other.communicate(timeout=60)[0].strip() == "True"
    assert other.returncode == 0
    assert we_won != they_won
    assert os.listdir(path.parent) == ["v"]
    np.testing.assert_array_equal(read_vault(path).state, 1 if we_won else 2)


def test_a_folder_that_cannot_be_written_to_is_a_one_line_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"^cannot write the vault .*file/x.vlt/v .*make its folder writable.*[^\n]$"):
        write_vault(tmp_path / "file" / "x.vlt" / "v", random_episodes())
    with pytest.raises(OSError, match="choose another folder"):
        write_vault(tmp_path / "100%20" / "v", random_episodes())
    (tmp_path / "taken").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write the vault .*taken "):
        write_vault(tmp_path / "taken", random_episodes())
    assert sorted(os.listdir(tmp_path)) == ["file", "taken"]


def test_a_read_only_folder_is_a_one_line_error():
    root, nobody = os.geteuid() == 0, 65534
    # Not pytest's folder, which only its owner can enter.
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o555)
        if root:  # root can write anywhere
            os.seteuid(nobody)
        try:
            with pytest.raises(OSError, match=r"cannot write the vault .*make its folder writable"):
                write_vault(folder / "v", random_episodes())
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)
        assert os.listdir(folder) == []


# After the first failure flashbax closes its event loop, which tensorstore's threads may then still call.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_a_one_line_error_and_leaves_nothing_behind(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    episodes = random_episodes(num_steps=3000, obs_dim=50)  # over a megabyte
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
    try:
        with pytest.raises(OSError, match=r"free some space") as caught:
            write_vault(tmp_path / "v", episodes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("leaf", "value"), [("obs", np.nan), ("reward", np.inf), ("action", 1.5)])
def test_bad_values_are_not_written(tmp_path, leaf, value):
    episodes = random_episodes()
    getattr(episodes, leaf)[4] = value
    with pytest.raises(VaultError, match=r"\[0, 4"):
        write_vault(tmp_path / "v", episodes)
    assert os.listdir(tmp_path) == []


def test_a_missing_vault(tmp_path):
    assert "does not exist" in read_error(tmp_path / "nowhere.vlt")
    assert "is not a vault" in read_error(tmp_path)
    (tmp_path / "Replay.zip").write_bytes(b"PK")
    assert "is not a vault" in read_error(tmp_path / "Replay.zip")


def test_several_vaults_are_listed_without_unfinished_ones(tmp_path, foreign_vault):
    for name in ("Good", "Poor", ".Medium-unfinished"):
        shutil.copytree(foreign_vault, tmp_path / name)
    message = read_error(tmp_path)
    assert f"{tmp_path / 'Good'}, {tmp_path / 'Poor'}" in message and "Medium" not in message


@pytest.mark.parametrize(
    ("leaves", "expected"),
    [
        ({"truncations": None}, "lacks truncations: expected actions, infos.state, observations"),
        ({"infos": None}, "lacks infos.state"),
        ({"actions": np.zeros((1, 10, 3, 1))}, "actions has the shape [1, T, 3, 1], but the leaves before it make it"),
        (
            {"rewards": np.zeros((1, 10))},
            "rewards has the shape [1, T, ], but the leaves before it make it [1, T, A=2]",
        ),
        ({"observations": np.zeros((3, 10, 2, 3))}, "observations has the shape [3, T, 2, 3]"),
        (
            {"observations": np.where(np.arange(10) == 6, np.nan, 0.0)[None, :, None, None] * np.ones((2, 3))},
            "[0, 6, 0",
        ),
        ({"infos": {"state": np.full((1, 10, 5), -np.inf)}}, "infos.state[0, 0, 0] is -inf"),
        (
            {"terminals": np.where(np.arange(10) == 6, np.nan, 0.0)[None, :, None] * np.ones(2)},
            "terminals[0, 6, 0] is NaN",
        ),
        ({"actions": np.full((1, 10, 2, 1), -1.01)}, "actions[0, 0, 0, 0] is outside [-1, 1]"),
        ({"rewards": np.arange(20.0).reshape(1, 10, 2)}, "rewards[0, 0, 1] is not agent 0's"),
    ],
)
def test_wrong_leaves_and_values(tmp_path, leaves, expected):
    leaves = jax.tree.map(lambda leaf: leaf.astype(np.float32), leaves)
    write_with_flashbax(tmp_path / "v", og_marl_experience(**leaves), 10)
    assert expected in read_error(tmp_path / "v")


@pytest.mark.parametrize(("leaf", "index"), [("rewards", (0, 3)), ("observations", (0, 3, 0, 0))])
def test_numbers_beyond_single_precision_are_refused(tmp_path, leaf, index):
    experience = jax.tree.map(lambda x: x.astype(np.float64), og_marl_experience())
    experience[leaf][index] = 1e300
    with jax.enable_x64(True):
        write_with_flashbax(tmp_path / "v", experience, 10)
    place = [*index, *[0] * (experience[leaf].ndim - len(index))]
    assert f"{leaf}{place} is +1e+300, infinite in single precision" in read_error(tmp_path / "v")


def test_an_empty_vault(tmp_path):
    write_with_flashbax(tmp_path / "v", og_marl_experience(), 0)
    assert "holds no steps" in read_error(tmp_path / "v")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (
            {"num_agents": 3},
            "observations has the shape [1, T, 2, 3], but the sizes of task toy make it [1, T, A=3, O=3]",
        ),
        (
            {"obs_dim": 12},
            "observations has the shape [1, T, 2, 3], but the sizes of task toy make it [1, T, A=2, O=12]",
        ),
        ({"action_dim": 2}, "actions has the shape [1, T, 2, 1], but the sizes of task toy make it [1, T, A=2, U=2]"),
        ({"state_dim": 4}, "infos.state has the shape [1, T, 5], but the sizes of task toy make it [1, T, S=4]"),
    ],
)
def test_a_vault_of_another_task(foreign_vault, size, expected):
    sizes = {"num_agents": 2, "state_dim": 5, "obs_dim": 3, "action_dim": 1} | size
    assert expected in read_error(foreign_vault, TaskSpec(name="toy", episode_length=4, **sizes))
    assert_equal(read_vault(foreign_vault, TASK), read_vault(foreign_vault))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1.2}', '{"version": 1.2, "structure_shape": "?"}'])
def test_damaged_metadata(tmp_path, foreign_vault, content):
    shutil.copytree(foreign_vault, tmp_path / "v")
    (tmp_path / "v" / "metadata.json").write_text(content)
    assert "corrupt" in read_error(tmp_path / "v")


def test_a_vault_of_a_future_version(tmp_path, foreign_vault):
    shutil.copytree(foreign_vault, tmp_path / "v")
    (tmp_path / "v" / "metadata.json").write_text('{"version": 2.0, "structure_shape": {}}')
    assert "format version 2.0" in read_error(tmp_path / "v")


@pytest.mark.parametrize("how", ["missing", "cut short", "a flipped bit"])
@pytest.mark.parametrize("which", ["own", "foreign"])
def test_damaged_files_are_detected_or_unused(tmp_path, own_vault, foreign_vault, which, how):
    vault = {"own": own_vault, "foreign": foreign_vault}[which]
    intact = read_vault(vault)
    shutil.copytree(vault, tmp_path / "v")
    detected = set()
    for file in sorted(file for file in (tmp_path / "v").rglob("*") if file.is_file()):
        content = file.read_bytes()
        middle = len(content) // 2
        if how == "missing":
            file.unlink()
        elif how == "cut short":
            file.write_bytes(content[:middle])
        else:
            file.write_bytes(content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :])
        try:
            assert_equal(read_vault(tmp_path / "v"), intact)  # flashbax leaves unused files
        except VaultError as fault:
            assert "\n" not in str(fault) and str(tmp_path / "v") in str(fault)
            detected.add(file.name)
        file.write_bytes(content)
    assert "manifest.ocdbt" in detected
    assert len(detected) > 7  # at least one file per leaf


def store(vault, prefix=""):
    return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{vault}/"}, "path": prefix}


def delete_chunk(vault, key):
    tensorstore.KvStore.open(store(vault)).result().write(key, None).result()


def test_missing_steps_are_detected(tmp_path, foreign_vault):
    for leaf, chunk in [
        ("observations", "0.0.0.0"),
        ("actions", "0.0.0.0"),
        ("rewards", "0.0.0"),
        ("infos.state", "0.0.0"),
    ]:
        shutil.copytree(foreign_vault, tmp_path / leaf)
        delete_chunk(tmp_path / leaf, f"{leaf}./{chunk}")
        assert f"incomplete: {leaf} lacks steps from 0 on" in read_error(tmp_path / leaf)


def test_missing_later_chunks_are_located(tmp_path):
    write_vault(tmp_path / "v", random_episodes(num_steps=120, num_agents=101, obs_dim=101))
    (tmp_path / "v" / "card.json").unlink()
    delete_chunk(tmp_path / "v", "observations./0.1.0.0")
    assert "observations lacks steps from 102 on" in read_error(tmp_path / "v")


def test_chunks_of_false_flags_may_be_missing(tmp_path, foreign_vault):
    shutil.copytree(foreign_vault, tmp_path / "v")
    delete_chunk(tmp_path / "v", "terminals./0.0.0")
    assert_equal(read_vault(tmp_path / "v"), read_vault(foreign_vault))


def test_the_checksum_detects_changed_values(tmp_path, own_vault):
    shutil.copytree(own_vault, tmp_path / "v")
    array = tensorstore.open({"driver": "zarr", "kvstore": store(tmp_path / "v", "rewards./")}).result()
    array[0, 3].write(np.float32(7.0)).result()
    assert "rewards is not what card.json says was written" in read_error(tmp_path / "v")


@pytest.mark.parametrize("content", ["", "{}", '{"leaves": {}}', '{"leaves": []}'])
def test_a_damaged_card(tmp_path, own_vault, content):
    shutil.copytree(own_vault, tmp_path / "v")
    (tmp_path / "v" / "card.json").write_text(content)
    assert "corrupt" in read_error(tmp_path / "v")
