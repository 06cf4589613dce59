"""The dataset commands: statistics of vaults, conversions, and the comparison with the published datasets."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

from coda_jax.data.conventions import convention_name, load_vault
from coda_jax.data.vault import read_vault, write_vault
from coda_jax.data.vault_files import VaultError
from coda_jax.envs import mamujoco
from experiments import data
from experiments.datasets import cards as dataset_cards
from experiments.datasets import film
from tests.drift import DRIFT, FALLING_DRIFT, SPEC, drift_episodes, falling_episodes, noise_episodes
from tests.vaults import joint_experience, write_with_flashbax


def recording(episodes, by_agent: bool = False, ends: str = "truncations"):
    """Episodes in the layout of OG-MARL."""
    flags = {name: np.zeros((len(episodes.reward), 2), bool) for name in ("terminals", "truncations")}
    flags[ends][:] = (episodes.truncation != 0)[:, None]
    leaves = {
        "observations": episodes.obs,
        "actions": episodes.action,
        "rewards": np.repeat(episodes.reward[:, None], 2, axis=1),
        **flags,
    }
    if by_agent:
        leaves = {name: {f"agent_{n}": leaf[None, :, n] for n in range(2)} for name, leaf in leaves.items()}
    else:
        leaves = {name: leaf[None] for name, leaf in leaves.items()}
    return {**leaves, "infos": {"state": episodes.state[None]}}


@pytest.fixture
def drift_tasks(monkeypatch):
    """Replaces every task by the drift environment."""
    monkeypatch.setattr(mamujoco, "make", lambda task: DRIFT)
    monkeypatch.setattr(data, "enable_compilation_cache", lambda: None)


def output_of(capsys, *args: str) -> str:
    data.main(args)
    return capsys.readouterr().out


def row(text: str, name: str) -> str:
    """The value of a name in the printed statistics."""
    return next(line.split("  ")[-1].strip() for line in text.splitlines() if line.strip().startswith(f"{name} "))


def test_the_statistics_of_a_vault(tmp_path, drift_tasks, capsys):
    episodes = noise_episodes(SPEC, 4, 5)
    episodes.reward[:] = np.repeat([1.0, 2.0, 3.0, 6.0], 5)
    episodes.action[:5, 0] = 1.0
    episodes.action[0, 0] = -1.5
    experience = recording(episodes)
    experience["observations"][0, 7, 1] = np.nan
    write_with_flashbax(tmp_path / "v", experience, 20)
    text = output_of(capsys, "inspect", str(tmp_path / "v"))
    assert row(text, "steps") == "20"
    assert row(text, "episodes") == "4, of 5 to 5 steps"
    assert row(text, "ends stored") == "0 terminal, 4 truncated"
    # Returns 5, 10, 15, 30: deviations 10, 5, 0, 15.
    assert f"15.0 +- {np.sqrt(350 / 4):.1f} [5.0, 30.0]" in text
    assert row(text, "NaN or infinite") == "observations 1"
    assert row(text, "actions at a bound") == "12.5 %"
    assert row(text, "actions outside [-1, 1]") == "1"
    assert row(text, "observations") == "[1, 20, 2, 1] float32"
    assert re.search(r"5 to +7 +#+ 1\n", text) and re.search(r"28 to 30 +#+ 1\n", text)
    assert "unusable: vault" in text and "observations[0, 7, 1, 0] is NaN; remove that episode" in text


def test_the_convention_is_printed(tmp_path, drift_tasks, capsys):
    write_with_flashbax(tmp_path / "v", recording(drift_episodes(8), by_agent=True), 40)
    text = output_of(capsys, "inspect", str(tmp_path / "v"))
    assert "convention: gymnasium_mamujoco (2halfcheetah); median error of steps simulated in MJX" in text
    assert row(text, "rewards") == "[1, 40, 2] float32, one array per agent"
    assert "ends checked in MJX: 0 terminal, 8 truncated\n" in text and "repaired" not in text
    assert "episodes shorter than a window of 20 steps: 8, with 0 true ends" in text


def test_repaired_ends_are_printed(tmp_path, drift_tasks, capsys, monkeypatch):
    """Falls after some 14 steps, one time limit at 40; a flag is one step late, and the limit is stored as a fall."""
    monkeypatch.setattr(mamujoco, "make", lambda task: FALLING_DRIFT)
    episodes = falling_episodes("flff")
    ends = episodes.bounds[1:] - 1
    experience = joint_experience(episodes, terminals=[ends[0] + 1, *ends[1:]])
    write_with_flashbax(tmp_path / "v", experience, len(episodes.reward))
    text = output_of(capsys, "inspect", str(tmp_path / "v"))
    assert "ends checked in MJX: 3 terminal, 1 truncated\n" in text
    assert f"repaired: 1 ends without a flag added, the first in episode 0 at step {ends[0]}\n" in text
    assert f"repaired: 1 flags that are not ends removed, the first in episode 1 at step {ends[0] + 1}\n" in text
    assert f"repaired: 1 terminals turned into truncations, the first in episode 1 at step {ends[1]}\n" in text
    assert "episodes shorter than a window of 20 steps: 3, with 3 true ends" in text
    _, loaded = load_vault("2halfcheetah", tmp_path / "v")
    jax.tree.map(np.testing.assert_array_equal, loaded, episodes)


def test_a_vault_of_an_unknown_task(tmp_path, drift_tasks, capsys):
    write_vault(tmp_path / "v", noise_episodes(type(SPEC)("other", 3, 4, 5, 2, 10), 2, 10))
    assert "convention: no task has A=3, O=5, U=2" in output_of(capsys, "inspect", str(tmp_path / "v"))


def test_an_old_recording_is_converted(tmp_path, drift_tasks, capsys):
    episodes = drift_episodes(8)
    write_with_flashbax(tmp_path / "old.vlt" / "Good", recording(episodes, by_agent=True, ends="terminals"), 40)
    flags = ["--output", str(tmp_path / "new.vlt" / "Good"), "--task", "2halfcheetah"]
    assert "40 steps of" in output_of(capsys, "convert", str(tmp_path / "old.vlt"), *flags)
    jax.tree.map(np.testing.assert_array_equal, read_vault(tmp_path / "new.vlt", SPEC), episodes)
    assert "exists" in error_line(capsys, "convert", str(tmp_path / "old.vlt"), *flags)


def test_a_vault_of_the_other_convention_is_refused_naming_both(tmp_path, drift_tasks):
    write_with_flashbax(tmp_path / "v", recording(drift_episodes(8)), 40)
    with pytest.raises(VaultError, match=r"use task 2halfcheetah$") as caught:
        load_vault("2halfcheetah-ogmarl", tmp_path / "v")
    assert all(convention_name(task) in str(caught.value) for task in ("2halfcheetah", "2halfcheetah-ogmarl"))


def test_a_part_of_a_vault_is_whole_episodes(tmp_path, drift_tasks):
    write_with_flashbax(tmp_path / "v", recording(drift_episodes(8)), 40)
    _, episodes = load_vault("2halfcheetah", tmp_path / "v", max_transitions=17)
    assert np.diff(episodes.bounds).tolist() == [5, 5, 5]


def error_line(capsys, *args: str) -> str:
    """The single error line of a command on stderr, with exit status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        data.main(args)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["inspect", "download"]),
        (["describe"], ["describe"]),
        (["inspect", "nowhere/at/all.vlt"], ["nowhere/at/all.vlt", "does not exist"]),
        (["download", "2halfcheetah"], ["2halfcheetah", "ENVIRONMENT/SCENARIO"]),
        (["download", "mamujoco/../2halfcheetah"], ["ENVIRONMENT/SCENARIO"]),
        (["convert", "nowhere.vlt", "--output", "new", "--task", "3cheetah"], ["--task", "3cheetah", "2halfcheetah"]),
        (["convert", "nowhere.vlt", "--output", "new"], ["nowhere.vlt"]),
        (["cards", "--num-episodes", "0"], ["--num-episodes", "0"]),
        (["cards", "--output", "."], ["--output", "folder"]),
        (["film", "--output", "team.mov"], ["team.mov", ".gif"]),
        (["film", "--output", "nowhere/team.gif"], ["nowhere", "folder"]),
        (["film", "--output", "team.gif", "--task", "3hopper"], ["--task", "3hopper", "2halfcheetah"]),
    ],
)
def test_bad_commands_are_one_line_errors(capsys, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "enable_compilation_cache", lambda: None)
    line = error_line(capsys, *args)
    assert all(word in line for word in words), line


def test_the_comparison_with_the_published_datasets_is_reproducible(tmp_path, monkeypatch):
    requested = []

    def load_dataset(env, dataset, num_episodes, mesh):
        requested.append((dataset, num_episodes))
        episodes = noise_episodes(SPEC, num_episodes, 5)
        episodes.reward[:] = {"replay": 0.0, "good": 1400.0, "medium": 300.0, "poor": 20.0}[dataset]
        return episodes

    monkeypatch.setattr(dataset_cards, "load_dataset", load_dataset)
    for name in ("first", "second"):
        output = tmp_path / name / "DATASETS.md"
        table = dataset_cards.write_cards(output, ["2halfcheetah"], 8, mesh=None)
        assert output.read_text() == table
    assert sorted(set(requested)) == [(name, 8) for name in ("good", "medium", "poor", "replay")]
    rows = {line.split()[2]: line for line in table.splitlines() if line.startswith("| 2halfcheetah")}
    assert "| 8 | 40 | 7,000 +- 0 [7,000, 7,000] | 6,924 +- 1,270 [803, 9,132] | +1 %, close |" in rows["good"]
    assert "+1 %, close" in rows["medium"] and "-75 %, below" in rows["poor"]
    assert "6987 (333k)" in rows["good"]  # the third team's snapshot that is nearest to 6,924
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
        assert file.suffix != ".png" or f"]({file})" in table


@pytest.mark.slow
def test_the_best_team_is_rendered_at_full_speed(tmp_path, monkeypatch, capsys):
    rendered = {}

    def render(robot, qpos, **_):
        rendered[robot.xml] = np.asarray(qpos)
        return np.full((len(qpos), 8, 8, 3), 128, np.uint8)

    monkeypatch.setattr(film, "render", render)
    monkeypatch.setattr(data, "enable_compilation_cache", lambda: None)
    assert "200 frames of a 2halfcheetah team with return 8,604" in output_of(
        capsys, "film", "--output", str(tmp_path / "x.gif")
    )
    with Image.open(tmp_path / "x.gif") as video:
        assert video.size == (8, 8)
    x = rendered["half_cheetah.xml"][:, 0]
    assert x[-1] - x[-101] > 5 * 5.0  # metres in 5 s: a return of 8,604 is 8.6 m/s minus the costs
