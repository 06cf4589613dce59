"""Sweeps: the runs of a file, and that killed processes lose nothing and repeat nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from coda_jax.data.vault import write_vault
from experiments import sweep
from tests.drift import drift_episodes

SWEEPS = Path(sweep.__file__).parent / "sweeps"

FAKE_JOB = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[sys.argv.index("--run-dir") + 1])
run.mkdir(exist_ok=True)
guidance = float(sys.argv[sys.argv.index("--guidance") + 1])
training = "{num_rounds: 3, epochs_per_round: 1, updates_per_epoch: 10}"
(run / "config.yaml").write_text(f"{{preset: laptop, guidance: {guidance}, training: {training}}}")
with (run / "journal").open("a") as journal:
    journal.write("started\\n")
table = run / "metrics.csv"
if not table.exists():
    table.write_text("updates\\n0\\n")
for round_ in range(len(table.read_text().splitlines()) - 1, 4):
    if guidance == 13:
        print("error: NaN in round 1, phase update, seed 0")
        sys.exit(2)
    time.sleep(0.3)
    with (run / "journal").open("a") as journal:
        journal.write(f"round {round_}\\n")
    with table.open("a") as file:
        file.write(f"{10 * round_}\\n")
(run / "summary.json").write_text(json.dumps({"mean": guidance, "standard_error": None}))
"""


def write_sweep(path: Path, output: Path, guidance: list[float]) -> Path:
    """A sweep of three rounds of ten updates, a run for each guidance scale."""
    sizes = {"training.num-rounds": 3, "training.epochs-per-round": 1, "training.updates-per-epoch": 10}
    settings = {"preset": "laptop", **sizes}
    groups = [{"grid": {"guidance": guidance}}]
    path.write_text(yaml.safe_dump({"output": str(output), "settings": settings, "groups": groups}))
    return path


@pytest.fixture
def fake_job(tmp_path, monkeypatch):
    """A main job that only writes a journal."""
    job = tmp_path / "job.py"
    job.write_text(FAKE_JOB)
    monkeypatch.setattr(sweep, "JOB", (sys.executable, str(job)))
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.05)
    return job


def journals(output: Path) -> list[list[str]]:
    return [path.read_text().split("\n")[:-1] for path in sorted(output.glob("*/journal"))]


def test_unused_settings_add_no_runs(tmp_path):
    file = tmp_path / "sweep.yaml"
    methods = {"augmentation": ["none", "unconditional", "coda"]}
    counts = {
        "guidance": (1, 1, 2),
        "training.mix-ratio": (1, 2, 2),
        "training.num_trajectories": (1, 1, 2),
        "training.static-trajectories": (1, 2, 1),
        "fit-seed": (1, 2, 2),
        "training.burn-in": (1, 2, 2),
    }
    for name, expected in counts.items():
        groups = [{"grid": {**methods, name: [0.2, 0.5] if name == "training.mix-ratio" else [1, 2]}}]
        file.write_text(yaml.safe_dump({"output": "runs", "groups": groups}))
        found = Counter(run.config.augmentation for run in sweep.read_sweep(file))
        assert tuple(found[method] for method in methods["augmentation"]) == expected, name


def test_settings_of_other_sources_of_consequences_add_no_runs(tmp_path):
    file = tmp_path / "sweep.yaml"
    groups = [{"grid": {"consequences": ["denoiser", "score"], "score-weight": [1.0, 2.0]}}]
    file.write_text(yaml.safe_dump({"output": "runs", "groups": groups}))
    assert Counter(run.config.consequences for run in sweep.read_sweep(file)) == {"denoiser": 1, "score": 2}


def test_a_switch_can_be_spelt_with_no(tmp_path):
    file = tmp_path / "sweep.yaml"
    groups = [{"settings": {"no-standardise": False}, "grid": {"training.no_reuse": [False, True]}}]
    file.write_text(yaml.safe_dump({"output": "runs", "groups": groups}))
    configs = [run.config for run in sweep.read_sweep(file)]
    assert [(config.standardise, config.training.reuse) for config in configs] == [(True, True), (True, False)]


def test_settings_of_other_algorithms_add_no_runs(tmp_path):
    file = tmp_path / "sweep.yaml"
    algorithms = {"algorithm": ["maddpg_bc", "iddpg_bc", "maddpg_cql"]}
    for name, expected in {"alpha-bc": (2, 2, 1), "cql-weight": (1, 1, 2), "target-rate": (2, 2, 2)}.items():
        groups = [{"grid": {**algorithms, f"learner.{name}": [0.5, 1.0]}}]
        file.write_text(yaml.safe_dump({"output": "runs", "groups": groups}))
        found = Counter(run.config.algorithm for run in sweep.read_sweep(file))
        assert tuple(found[algorithm] for algorithm in algorithms["algorithm"]) == expected, name


def test_an_incomplete_row_is_not_progress(tmp_path):
    (run,) = sweep.read_sweep(write_sweep(tmp_path / "s.yaml", tmp_path, [0.1]))
    run.path.mkdir()
    (run.path / "metrics.csv").write_text("round,seed,updates,return\n3,1")
    assert run.done() == 0


@pytest.mark.parametrize(
    ("name", "scale"), [("laptop", (4, 10_000)), pytest.param("paper", (16, 300_000), marks=pytest.mark.slow)]
)
def test_the_committed_sweeps_contain_table_1(name, scale):
    runs = sweep.read_sweep(SWEEPS / f"{name}.yaml")
    assert len({run.path for run in runs}) == len(runs)
    configs = [run.config for run in runs]
    num_seeds, updates = scale
    assert all(
        c.num_seeds == num_seeds and run.work // num_seeds >= updates for run, c in zip(runs, configs, strict=True)
    )
    places = [*(("2halfcheetah", dataset) for dataset in ("replay", "good", "medium", "poor")), ("4ant", "replay")]
    methods = [("none", 0.6), ("unconditional", 0.6), ("coda", 0.6), ("coda", 1.0)]
    wanted = {(*place, *method) for place in places for method in methods}
    assert wanted <= {(c.task, c.dataset, c.augmentation, c.guidance) for c in configs}
    on_replay = [c for c in configs if (c.task, c.dataset) == ("2halfcheetah", "replay")]
    assert len({c.fit_seed for c in on_replay if c.augmentation == "coda"}) >= 3
    assert len({c.training.mix_ratio for c in on_replay}) >= 3
    assert len({c.guidance for c in on_replay}) >= 4
    assert {0.0, 2.5} <= {c.learner.alpha_bc for c in on_replay}


def test_shards_partition_the_runs(tmp_path):
    runs = sweep.read_sweep(write_sweep(tmp_path / "s.yaml", tmp_path, [0.1, 0.2, 0.3, 0.4, 0.5]))
    shares = [sweep.shard(runs, f"{index}/3") for index in (1, 2, 3)]
    assert sorted(run.name for share in shares for run in share) == sorted(run.name for run in runs)
    assert [len(share) for share in shares] == [2, 2, 1]


def test_failed_runs_are_reported_at_the_end_and_stop_no_others(tmp_path, fake_job, capsys):
    file = write_sweep(tmp_path / "s.yaml", tmp_path / "runs", [0.1, 13.0, 0.3])
    with pytest.raises(SystemExit) as ended:
        sweep.main([str(file)])
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert "NaN in round 1, phase update, seed 0" in out and "1 of 3 runs failed" in err
    assert [len(journal) for journal in journals(tmp_path / "runs")] == [4, 4, 1]
    with pytest.raises(SystemExit):
        sweep.main([str(file)])
    assert [len(journal) for journal in journals(tmp_path / "runs")] == [4, 4, 2]  # finished runs are skipped


def test_a_finished_run_with_other_settings_is_refused(tmp_path, fake_job, capsys):
    file = write_sweep(tmp_path / "s.yaml", tmp_path / "runs", [0.1])
    sweep.main([str(file)])
    (settings,) = tmp_path.glob("runs/*/config.yaml")
    settings.write_text(settings.read_text().replace("training:", "learner: {alpha_bc: 5.0}, training:"))
    with pytest.raises(SystemExit) as ended:
        sweep.main([str(file), "--list"])
    assert ended.value.code == 2
    assert "learner.alpha_bc is 5.0 there and 10.0 here" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True])
def test_a_killed_sweep_loses_nothing_and_runs_nothing_twice(tmp_path, fake_job, whole_group):
    """If only the sweep is killed, its run continues and the next sweep waits for it; else the run is resumed."""
    output = tmp_path / "runs"
    file = write_sweep(tmp_path / "s.yaml", output, [0.1, 0.2, 0.3])
    code = f"from experiments import sweep; sweep.JOB = {sweep.JOB!r}; sweep.main([{str(file)!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while sum(map(len, journals(output))) < 6:  # one run is finished, one is in its second round
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    sweep.main([str(file)])
    found = journals(output)
    assert len(found) == 3 and len(list(output.glob("*/summary.json"))) == 3
    for journal in found:
        rounds = [line for line in journal if line != "started"]
        assert rounds == [f"round {number}" for number in (1, 2, 3)]
    assert sum(journal.count("started") for journal in found) == (4 if whole_group else 3)


def test_sigterm_to_a_sweep_ends_its_run_too():
    ended = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    try:
        with (
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process,
            sweep.killed_at_the_end(process),
        ):
            os.kill(os.getpid(), signal.SIGTERM)
            assert process.wait(30) == -signal.SIGKILL
        os.kill(os.getpid(), signal.SIGTERM)  # the handler of before stands again
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == [signal.SIGTERM] * 2


def test_the_lock_of_a_run_excludes_other_sweeps(tmp_path, fake_job):
    file = write_sweep(tmp_path / "s.yaml", tmp_path / "runs", [0.1, 0.2, 0.3])
    first, *_ = sweep.read_sweep(file)
    with sweep.exclusive(first.path, wait=False) as lock, sweep.exclusive(first.path, wait=False) as other:
        assert lock is not None and other is None
    with sweep.exclusive(first.path, wait=False) as lock:
        assert lock is not None


def test_listing_runs_nothing(tmp_path, fake_job, capsys):
    sweep.main([str(write_sweep(tmp_path / "s.yaml", tmp_path / "runs", [0.1])), "--list"])
    assert "0% done" in capsys.readouterr().out and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "flags", "words"),
    [
        ("a: [", [], ["cannot be read"]),
        ("output: runs", [], ["groups"]),
        ("{output: runs, groups: [], more: 1}", [], ["more"]),
        ("{output: runs, groups: [{grid: {dataset: replay}}]}", [], ["group 1", "list of values"]),
        ("{output: runs, groups: []}", [], ["no runs"]),
        ("{output: 3, groups: []}", [], ["output"]),
        ("{output: runs, settings: , groups: [{}]}", [], ["settings", "flags"]),
        ("{output: runs, groups: [{settings: {help: true}}]}", [], ["group 1", "flags"]),
        (
            "{output: runs, groups: [{settings: {augmentation: none, diffusion.no-such: 1}}]}",
            [],
            ["group 1", "no-such"],
        ),
        ("{output: runs, groups: [{grid: {dataset: [expert]}}]}", [], ["group 1", "--dataset", "expert"]),
        ("{output: runs, groups: [{settings: {no-such: 1}}]}", [], ["group 1", "no-such"]),
        ("{output: runs, output: other, groups: []}", [], ["'output'", "a second time"]),
        ("output: runs\ngroups:\n- settings:\n    seed: 1\n    seed: 2\n", [], ["line 5", "'seed'", "a second time"]),
        ("{output: runs, groups: [{settings: {num-seeds: 1, num_seeds: 2}}]}", [], ["num-seeds", "two spellings"]),
        (
            "{output: runs, groups: [{settings: {training.no-reuse: true, training.reuse: true}}]}",
            [],
            ["training.reuse", "two spellings"],
        ),
        ("{output: runs, groups: [{settings: {seed: 1}, grid: {seed: [2, 3]}}]}", [], ["group 1", "seed", "its grid"]),
        ("{output: runs, settings: {run_dir: x}, groups: [{}]}", [], ["run-dir", "remove it"]),
        ("{output: runs, groups: [{grid: {run-dir: [x, y]}}]}", [], ["run-dir", "remove it"]),
        ("{output: runs, settings: {coordinator: cluster}, groups: [{}]}", [], ["coordinator", "remove it"]),
        ("{output: runs, groups: [{settings: {learner.discount: 2}}]}", [], ["--learner.discount is 2", "at most 1"]),
        ("[" * 5000, [], ["cannot be read", "too deeply"]),
        ("output: runs\ngroups: &a [*a]", [], ["cannot be read", "contains itself"]),
        ("{output: runs, groups: [{}]}", ["--shard", "3/2"], ["--shard", "3/2"]),
        ("{output: runs, groups: [{}]}", ["--shard", "half"], ["--shard", "half"]),
    ],
)
def test_bad_sweeps_are_one_line_errors(tmp_path, capsys, content, flags, words):
    file = tmp_path / "sweep.yaml"
    file.write_text(content)
    with pytest.raises(SystemExit) as ended:
        sweep.main([str(file), *flags])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words), line


@pytest.mark.slow
def test_a_killed_sweep_of_real_runs_ends_with_the_same_numbers(tmp_path):
    """The main job in an environment without physics: a sweep killed in its second run, and an uninterrupted one."""
    vault = tmp_path / "vaults" / "drift" / "Replay.vlt" / "one"
    write_vault(vault, drift_episodes(20))
    settings = {
        "preset": "smoke",
        "vault": str(vault),
        "diffusion.num-steps": 2,
        "denoiser.num-updates": 2,
        "denoiser.batch-size": 4,
        "denoiser.unet.width": 4,
        "training.horizon": 3,
        "training.batch-size": 4,
        "training.mix-ratio": 0.5,
        "training.num-rounds": 3,
        "training.updates-per-epoch": 2,
        "training.num-trajectories": 4,
        "learner.critic-widths": [8],
        "learner.policy-linear-width": 4,
        "learner.policy-hidden-width": 4,
    }
    file = tmp_path / "sweep.yaml"
    groups = [{"grid": {"augmentation": ["none", "coda"]}}]
    file.write_text(yaml.safe_dump({"output": str(tmp_path / "whole"), "settings": settings, "groups": groups}))
    job = (sys.executable, str(Path(__file__).parent / "drift_job.py"))
    code = f"import sys; from experiments import sweep; sweep.JOB = {job!r}; sweep.main(sys.argv[1:])"
    environment = {**os.environ, "CODA_JAX_CACHE": str(tmp_path / "cache"), "JAX_NUM_CPU_DEVICES": "2"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", code, str(file)]
    subprocess.run(command, env=environment, check=True)
    killed = tmp_path / "killed"
    process = subprocess.Popen([*command, "--output", str(killed)], env=environment, start_new_session=True)
    while not list(killed.glob("*coda*/checkpoints/train/1.json")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in killed.glob("*none*/summary.json")}
    assert len(finished) == 1 and not list(killed.glob("*coda*/summary.json"))
    subprocess.run([*command, "--output", str(killed)], env=environment, check=True)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    for run in (tmp_path / "whole").glob("*/summary.json"):
        other = killed / run.parent.name
        assert (other / "metrics.csv").read_bytes() == (run.parent / "metrics.csv").read_bytes()
        a, b = (json.loads(p.read_text())["returns_per_seed"] for p in (run, other / "summary.json"))
        assert a == b
