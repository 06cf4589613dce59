"""The job scripts of examples/slurm/, with a `srun` that prints its command."""

import os
import pathlib
import subprocess

import pytest

SCRIPTS = pathlib.Path(__file__).parents[1] / "examples" / "slurm"


def command_of(folder: pathlib.Path, script: str, *args: str, task: int) -> list[str]:
    """The command that a task of an array of eight starts."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    srun = folder / "srun"
    srun.write_text('#!/bin/sh\necho "$CODA_JAX_CACHE"\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_MAX": "8",
    }
    done = subprocess.run(
        ["bash", SCRIPTS / script, *args], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    cache, *command = done.stdout.splitlines()
    assert cache == str(folder / "runs" / "cache")
    return command


def test_a_task_of_a_sweep_runs_its_shard(tmp_path):
    command = command_of(tmp_path, "sweep.sbatch", "sweeps/mine.yaml", task=3)
    assert command == ["python", "-m", "experiments.sweep", "sweeps/mine.yaml", "--shard", "3/8"]


def test_one_run_over_the_nodes_of_a_job(tmp_path):
    command = command_of(tmp_path, "hosts.sbatch", "--dataset", "good", task=0)
    assert command[1:4] == ["python", "-m", "experiments.mamujoco"]
    assert command[4:] == ["--dataset", "good", "--coordinator", "cluster"]


@pytest.mark.parametrize(("task", "first"), [(0, "0"), (3, "12")])
def test_tasks_train_blocks_of_seeds_without_overlap(tmp_path, task, first):
    command = command_of(tmp_path, "seeds.sbatch", "4", "--dataset", "good", task=task)
    assert command[:5] == ["python", "-m", "experiments.mamujoco", "--dataset", "good"]
    assert command[5:] == ["--num-seeds", "4", "--seed", first]
