import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from experiments.evidence.recorded_runs import read_summary
from experiments.host import provenance, run_folder
from experiments.host.errors import UserError
from experiments.host.run_folder import Metrics, RunFolder, default_run_dir, open_run_folder
from experiments.pipeline.run import run_dir_of
from experiments.pipeline.settings import PRESETS

CONFIG = {"task": "2halfcheetah", "guidance": 0.6, "diffusion": {"num_steps": 64, "clip": 1e-6}}


def snapshot(folder: Path) -> dict[str, str]:
    return {str(file): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_new_folder_has_config_and_provenance(tmp_path):
    with open_run_folder(tmp_path / "runs" / "a", CONFIG, num_devices=2) as folder:
        assert folder.figures.is_dir() and not folder.finished
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == CONFIG
    origin = json.loads((folder.path / "provenance.json").read_text())
    assert origin["num_devices"] == 2 and origin["visible_cores"] >= 1
    assert origin["versions"]["jax"] and origin["backend"] and origin["python"]
    assert origin["resumed"] == []


def test_the_same_config_reopens_the_folder(tmp_path):
    for _ in range(2):
        with open_run_folder(tmp_path / "a", CONFIG, num_devices=2):
            pass
    assert json.loads((tmp_path / "a" / "provenance.json").read_text())["resumed"] == [{}]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (CONFIG | {"guidance": 0.3}, "guidance is 0.6 there and 0.3 here"),
        (CONFIG | {"diffusion": {"num_steps": 32, "clip": 1e-6}}, "diffusion.num_steps is 64 there and 32 here"),
        (CONFIG | {"new": 1}, "new is missing there and 1 here"),
        ({name: CONFIG[name] for name in ("guidance", "diffusion")}, "task is 2halfcheetah there and missing here"),
    ],
)
def test_another_config_is_refused_and_nothing_overwritten(tmp_path, other, words):
    with open_run_folder(tmp_path / "a", CONFIG, num_devices=2) as folder:
        folder.write_summary({"mean": 1.0})
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=words), open_run_folder(tmp_path / "a", other, num_devices=2):
        pass
    assert snapshot(tmp_path) == before


def test_settings_newer_than_the_folder_have_their_defaults(tmp_path):
    defaults = CONFIG | {"diffusion": {"num_steps": 128, "clip": 1e-6, "churn": 0.0}}
    newer = CONFIG | {"diffusion": CONFIG["diffusion"] | {"churn": 0.0}}
    for config in (CONFIG, newer):
        with open_run_folder(tmp_path / "a", config, num_devices=2, defaults=defaults if config is newer else None):
            pass
    newer = CONFIG | {"diffusion": CONFIG["diffusion"] | {"churn": 1.0}}
    words = "diffusion.churn is 0.0 there and 1.0 here"
    with (
        pytest.raises(UserError, match=words),
        open_run_folder(tmp_path / "a", newer, num_devices=2, defaults=defaults),
    ):
        pass


def test_a_nan_in_the_config_equals_itself(tmp_path):
    for _ in range(2):
        with open_run_folder(tmp_path / "a", {"limit": float("nan")}, num_devices=2):
            pass


def test_a_second_process_is_refused(tmp_path):
    with (
        open_run_folder(tmp_path / "a", CONFIG, num_devices=2),
        pytest.raises(UserError, match="another process works in"),
        open_run_folder(tmp_path / "a", CONFIG, num_devices=2),
    ):
        pass
    with open_run_folder(tmp_path / "a", CONFIG, num_devices=2):
        pass  # free again


def test_other_folders_are_refused_and_unchanged(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    before = snapshot(tmp_path)
    for path, words in [(tmp_path, "holds thesis.tex"), (tmp_path / "thesis.tex", "not a folder")]:
        with pytest.raises(UserError, match=words), open_run_folder(path, CONFIG, num_devices=2):
            pass
    assert snapshot(tmp_path) == before


def test_a_config_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match="cannot be read"), open_run_folder(tmp_path, CONFIG, num_devices=2):
        pass


def test_another_device_count_is_refused_unless_allowed(tmp_path, capsys):
    with open_run_folder(tmp_path, CONFIG, num_devices=2):
        pass
    refused = pytest.raises(UserError, match="begun on 2 devices, here are 1")
    with refused, open_run_folder(tmp_path, CONFIG, num_devices=1):
        pass
    with open_run_folder(tmp_path, CONFIG, num_devices=1, allow_other_devices=True) as folder:
        folder.write_summary({"mean": 0.0})
    assert "num_devices changed" in capsys.readouterr().err
    with open_run_folder(tmp_path, CONFIG, num_devices=3) as folder:  # nothing is left to compute
        assert folder.finished


@pytest.mark.parametrize(("name", "other"), [("visible_cores", 77), ("processor", "another, avx512f")])
def test_other_cores_and_processors_are_warned_of(tmp_path, capsys, monkeypatch, name, other):
    with open_run_folder(tmp_path, CONFIG, num_devices=2):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(provenance, name, lambda: other)
    with open_run_folder(tmp_path, CONFIG, num_devices=2):
        pass
    assert f"{name} changed" in capsys.readouterr().err
    assert json.loads((tmp_path / "provenance.json").read_text())["resumed"] == [{name: other}]


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_random_seed_offset", 1), ("jax_threefry_partitionable", False), ("jax_default_prng_impl", "rbg")],
)
def test_other_random_numbers_are_refused(tmp_path, name, value):
    with open_run_folder(tmp_path, CONFIG, num_devices=2):
        pass
    usual = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        refused = pytest.raises(UserError, match=f"begun with {name} {usual}, here it is {value}")
        with refused, open_run_folder(tmp_path, CONFIG, num_devices=2):
            pass
    finally:
        jax.config.update(name, usual)


def test_records_from_before_a_setting_was_recorded_are_not_warned_of(tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "_JAX_SETTINGS", ("jax_disable_jit",))
        with open_run_folder(tmp_path, CONFIG, num_devices=2):
            pass
    with open_run_folder(tmp_path, CONFIG, num_devices=2):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "other")
    with open_run_folder(tmp_path, CONFIG, num_devices=2):
        pass
    assert "numerics changed" in capsys.readouterr().err


def test_the_summary_finishes_the_run(tmp_path):
    with open_run_folder(tmp_path, CONFIG, num_devices=2) as folder:
        folder.write_summary({"returns_per_seed": [1.5, 2.5]})
        assert folder.finished and folder.read_summary() == {"returns_per_seed": [1.5, 2.5]}
    assert not list(tmp_path.glob(".*.partial"))


def test_series_of_checkpoints_are_opened_by_name(tmp_path):
    with open_run_folder(tmp_path, CONFIG, num_devices=2) as folder:
        with folder.checkpoints("fit") as fit:
            fit.save(1, {"x": jnp.ones(2)})
        with folder.checkpoints("train") as train:
            assert train.restore({"x": jnp.zeros(2)}) is None
        with folder.checkpoints("fit") as fit:
            assert fit.restore({"x": jnp.zeros(2)}).step == 1


def test_metrics_are_one_row_per_seed_with_all_significant_digits(tmp_path):
    metrics = Metrics(tmp_path / "metrics.csv")
    returns = np.array([0.1, 1 / 3], np.float32)
    metrics.append(1, [0, 1], {"updates": 500, "return": jnp.asarray(returns)})
    metrics.append(2, [0, 1], {"updates": 1000, "return": np.array([np.nan, 7.0])})
    assert metrics.path.read_text().splitlines() == [
        "round,seed,updates,return",
        "1,0,500,0.1",
        "1,1,500,0.33333334",
        "2,0,1000,nan",
        "2,1,1000,7.0",
    ]
    read = metrics.read()
    assert read["seed"].tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(read["return"][:2].astype(np.float32), returns)


def test_metrics_keep_their_columns(tmp_path):
    metrics = Metrics(tmp_path / "metrics.csv")
    metrics.append(1, [0, 1], {"return": np.zeros(2)})
    with pytest.raises(ValueError, match="columns"):
        metrics.append(2, [0, 1], {"returns": np.zeros(2)})


def test_a_damaged_file_of_metrics_is_made_again_from_the_notes(tmp_path):
    metrics = Metrics(tmp_path / "metrics.csv")
    for round_ in (1, 2):
        metrics.append(round_, [0, 1], {"return": np.full(2, 10.0 * round_)})
    notes, whole = metrics.text, metrics.path.read_bytes()
    metrics.append(3, [0, 1], {"return": np.full(2, 30.0)})
    metrics.path.write_bytes(b"\xff" + whole[:9])
    resumed = Metrics(tmp_path / "metrics.csv")
    resumed.restore(notes)
    assert resumed.path.read_bytes() == whole
    resumed.append(3, [0, 1], {"return": np.full(2, 30.0)})
    assert resumed.read()["return"].tolist() == [10.0, 10.0, 20.0, 20.0, 30.0, 30.0]
    resumed.restore("")
    assert resumed.read() == {}


@pytest.mark.parametrize("torn", ["", "3,", "3,0,1", "3,0,1.0,30.0"])
def test_metrics_of_older_checkpoints_are_cut_back(tmp_path, torn):
    metrics = Metrics(tmp_path / "metrics.csv")
    metrics.cut_back(0)
    for round_ in (1, 2):
        metrics.append(round_, [0, 1], {"return": np.full(2, 10.0 * round_)})
    whole = metrics.text
    metrics.path.write_text(whole + torn)
    metrics.cut_back(2)
    assert metrics.path.read_text() == metrics.text == whole
    metrics.cut_back(1)
    assert metrics.read()["return"].tolist() == [10.0, 10.0]
    metrics.cut_back(0)
    assert metrics.read() == {}
    metrics.path.write_text("round,seed\nx,0\n")
    with pytest.raises(UserError, match="damaged"):
        metrics.cut_back(1)


FILES = (
    *("summary.json", "config.yaml", "provenance.json", "metrics.csv", "SHA256SUMS"),
    *("data.json", "policy.npz", "prior.npz", "figures/learning_curve.png"),
)


def finish(path: Path) -> RunFolder:
    """A finished run with a file of every kind."""
    with open_run_folder(path, CONFIG, num_devices=2) as folder:
        folder.check_dataset("0123456789abcdef")
        folder.metrics.append(1, [0, 1], {"return": np.zeros(2)})
        for name in ("policy.npz", "prior.npz", "figures/learning_curve.png"):
            (path / name).write_bytes(np.random.default_rng(0).bytes(500))
        folder.write_summary({"mean": 1.5})
    assert folder.read_summary({"mean": float}) == {"mean": 1.5}
    return folder


def age(path: Path) -> None:
    """Makes a finished run one of before there were checksums."""
    (path / "SHA256SUMS").unlink()
    (path / "config.yaml").write_text(yaml.safe_dump(CONFIG))


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_a_finished_run_is_one_line(tmp_path, name):
    folder = finish(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    for position in range(0, len(content), max(1, len(content) // 20)):
        (tmp_path / name).write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(UserError, match=r"damaged.*; delete .*summary\.json"):
            folder.read_summary()
    (tmp_path / name).write_bytes(content)
    assert folder.read_summary() == {"mean": 1.5}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_a_finished_run_lacks_is_one_line(tmp_path, name):
    folder = finish(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises((UserError, FileNotFoundError)) as error:
        folder.read_summary()
    assert name in str(error.value) and len(str(error.value).splitlines()) == 1
    if name in ("policy.npz", "prior.npz", "figures/learning_curve.png"):
        assert read_summary(tmp_path, {"mean": float}) == {"mean": 1.5}  # the report's: copies may lack it
        return
    with pytest.raises(UserError, match=name):
        read_summary(tmp_path, {})


def test_the_report_verifies_what_a_copy_has(tmp_path):
    finish(tmp_path)
    for name in FILES:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(UserError, match="damaged"):
            read_summary(tmp_path, {})
        (tmp_path / name).write_bytes(content)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum of GNU coreutils")
def test_the_checksums_are_those_of_coreutils(tmp_path):
    def check() -> subprocess.CompletedProcess[str]:
        command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    finish(tmp_path)
    done = check()
    assert done.returncode == 0 and done.stderr == "", done
    assert set(done.stdout.splitlines()) == {f"{name}: OK" for name in FILES if name != "SHA256SUMS"}
    (tmp_path / "policy.npz").write_bytes(b"")
    assert check().returncode == 1


def test_older_lists_of_checksums_are_read(tmp_path):
    """They have no checksum of their own, and cover the settings, the provenance, the numbers and the summary."""
    folder = finish(tmp_path)
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines(keepends=True)[1:]
    lines = [line for line in lines if ".npz" not in line and "figures" not in line]
    (tmp_path / "SHA256SUMS").write_text("".join(lines))
    (tmp_path / "policy.npz").unlink()
    assert folder.read_summary() == read_summary(tmp_path, {}) == {"mean": 1.5}
    for number in range(len(lines)):
        (tmp_path / "SHA256SUMS").write_text("".join(lines[:number] + lines[number + 1 :]))
        with pytest.raises(UserError, match="damaged"):
            folder.read_summary()
    for text in ("", "a  b\n", "".join(lines).upper()):
        (tmp_path / "SHA256SUMS").write_text(text)
        with pytest.raises(UserError, match="SHA256SUMS is damaged"):
            folder.read_summary()


def test_what_is_damaged_while_the_run_goes_on_is_noticed_at_its_end(tmp_path):
    with open_run_folder(tmp_path, CONFIG, num_devices=2) as folder:
        text = (tmp_path / "config.yaml").read_text()
        (tmp_path / "config.yaml").write_text(text.replace("0.6", "0.7"))
        folder.write_summary({"mean": 1.5})
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        folder.read_summary()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("config.yaml", "task: 2halfcheetah", "task: 2halfcheetaH"),
        ("config.yaml", "clip: 1.0e-06", "clip: 1.0e-07"),
        ("config.yaml", "\ntask", "\n#task"),
        ("provenance.json", '"python"', '"pytho"'),
        ("provenance.json", '"visible_cores": ', '"visible_cores": 1'),
    ],
)
def test_a_readable_change_of_an_unfinished_run_is_one_line(tmp_path, name, old, new):
    with open_run_folder(tmp_path, CONFIG, num_devices=2):
        pass
    text = (tmp_path / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=name), open_run_folder(tmp_path, CONFIG, num_devices=2):
        pass


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b'{"mean": "1"}', b'{"mean": true}', b"{}", b"[" * 10**5]
)
def test_a_damaged_summary_without_checksums_is_one_line(tmp_path, content):
    with open_run_folder(tmp_path, CONFIG, num_devices=2) as folder:
        folder.write_summary({"mean": 1.5})
    age(tmp_path)
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(UserError, match=r"summary\.json .*; delete .*summary\.json"):
        folder.read_summary({"mean": float})


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"num_devices": "2", "resumed": []}', '{"resumed": []}'])
def test_a_damaged_provenance_can_be_deleted(tmp_path, content):
    with open_run_folder(tmp_path, CONFIG, num_devices=2):
        pass
    (tmp_path / "provenance.json").write_text(content)
    words = r"provenance\.json .*; delete it to continue"
    with pytest.raises(UserError, match=words), open_run_folder(tmp_path, CONFIG, num_devices=2):
        pass
    (tmp_path / "provenance.json").unlink()
    with open_run_folder(tmp_path, CONFIG, num_devices=2):
        pass


def test_the_default_folder_derives_from_the_config():
    names = {"task": "2halfcheetah", "dataset": "replay", "augmentation": "coda", "guidance": 0.6, "preset": "laptop"}
    folder = default_run_dir(**names, config=CONFIG)
    assert folder == default_run_dir(**names, config=dict(reversed(CONFIG.items())))
    assert folder.parent == Path("runs") and folder.name.startswith("2halfcheetah-replay-coda-g0.6-laptop-")
    adapted = default_run_dir(**(names | {"guidance": "auto"}), config=CONFIG)
    assert adapted.name.startswith("2halfcheetah-replay-coda-gauto-laptop-")
    assert folder != default_run_dir(**names, config=CONFIG | {"seed": 1})
    vault = default_run_dir(**(names | {"dataset": "/data/my vaults/Good one.vlt"}), config=CONFIG)
    assert vault.name.startswith("2halfcheetah-Good_one-coda-")


def test_the_name_of_a_folder_has_the_differences_from_its_preset():
    names = {"task": "2halfcheetah", "dataset": "replay", "augmentation": "coda", "guidance": 0.6, "preset": "laptop"}
    usual = PRESETS["laptop"]
    assert run_dir_of(usual) == default_run_dir(**names, config={})
    other = dataclasses.replace(usual, training=dataclasses.replace(usual.training, burn_in=1))
    assert run_dir_of(other) == default_run_dir(**names, config={"training.burn_in": 1})
    assert run_dir_of(dataclasses.replace(usual, run_dir=Path("a"))) == run_dir_of(usual)  # no number depends on it


def test_changes_that_are_not_committed_are_kept_within_limits(tmp_path, monkeypatch):
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "experiments").mkdir()
    (tmp_path / "file").write_text("old\n")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "experiments" / "host" / "provenance.py"))
    assert provenance.provenance(1)["commit"] is None  # no checkout
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    assert len(provenance.provenance(1)["commit"]) == 40
    assert provenance.provenance(1)["diff"] == ""
    (tmp_path / "file").write_text("new\n" * 1000)
    assert provenance.provenance(1)["diff"].count("+new\n") >= 999
    monkeypatch.setattr(provenance, "MAX_DIFF", 100)
    assert "further characters" in provenance.provenance(1)["diff"]


def test_every_recorded_change_is_part_of_the_provenance():
    assert set(run_folder._AFFECTS_NUMBERS) <= set(provenance.provenance(1))


def test_the_dataset_of_a_folder_is_compared(tmp_path):
    with open_run_folder(tmp_path, CONFIG, num_devices=2) as folder:
        folder.check_dataset("0123456789abcdef")
        folder.check_dataset("0123456789abcdef")
        with pytest.raises(UserError, match="belongs to another dataset, with digest 0123456789ab there and ffff here"):
            folder.check_dataset("ffff")
        folder.write_summary({})
        with pytest.raises(UserError, match="another dataset"):
            folder.check_dataset("ffff")


def test_a_finished_folder_without_a_digest_opens_and_is_not_touched(tmp_path):
    with open_run_folder(tmp_path, CONFIG, num_devices=2) as folder:
        folder.write_summary({})
        folder.check_dataset("0123456789abcdef")
    assert not (tmp_path / "data.json").exists()
