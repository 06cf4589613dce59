"""The package needs what it declares and no more: its imports, and its wheel alone in an empty environment.

The slow tests build wheel and sdist and install the wheel under constraints.txt, from the package index.
"""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.readme import api_example

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

OPTIONAL = frozenset({"rliable", "huggingface-hub", "gymnasium-robotics"})
"""Distributions of extras, which commands import when they need them."""

FOLDERS = (".ci", ".github", "docs", "examples", "experiments", "results", "src", "tests", "typings")
FILES = (
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "RESULTS.md"),
    *("constraints.txt", "mkdocs.yml", "pyproject.toml"),
)
NO_SOURCE = (
    *(".git", ".venv*", ".*_cache", ".hypothesis", ".lock", "__pycache__", "*.py[co]", "*.egg-info", "build", "site"),
    *("runs", "checkpoints", "*.log", "*.lock", "*_LOG.TXT"),
)


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def declared_dependencies() -> set[str]:
    return {normalised(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]) for requirement in PROJECT["dependencies"]}


def third_party_imports(module: Path) -> set[str]:
    """The top-level packages that a module imports, anywhere in it, other than its own and the standard library's."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"coda_jax", "experiments"}


def test_every_import_of_library_and_commands_is_a_declared_dependency():
    declared, provided_by = declared_dependencies() | OPTIONAL, importlib.metadata.packages_distributions()
    modules = [path for folder in ("src", "experiments") for path in (ROOT / folder).rglob("*.py")]
    imports = {module: third_party_imports(module) for module in modules}
    assert {"jax", "numpy", "mujoco"} <= set().union(*imports.values())
    for module, packages in imports.items():
        for package in packages:
            names = {normalised(name) for name in provided_by.get(package, ())}
            assert names & declared, f"{module.relative_to(ROOT)} imports {package}, which is not declared"


class Built(NamedTuple):
    """source: the copy that was built; wheel and sdist: the files built from it."""

    source: Path
    wheel: Path
    sdist: Path


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def run(python: Path, *arguments: object, folder: Path) -> str:
    """Runs another environment's Python, isolated from this one's variables and modules; returns what it prints."""
    command = [str(python), "-I", *map(str, arguments)]
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """The sdist, and the wheel built from what the sdist holds."""
    folder = tmp_path_factory.mktemp("build")
    source, environment, output = folder / "source", folder / "environment", folder / "output"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NO_SOURCE))
    venv.create(environment, with_pip=True)
    run(python_of(environment), "-m", "pip", "install", "--quiet", "build", folder=folder)
    run(python_of(environment), "-m", "build", "--outdir", output, source, folder=folder)
    (wheel,), (sdist,) = output.glob("*.whl"), output.glob("*.tar.gz")
    return Built(source=source, wheel=wheel, sdist=sdist)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The Python of an environment that has the wheel and its dependencies, and nothing else but pip."""
    folder = tmp_path_factory.mktemp("install")
    venv.create(folder / "environment", with_pip=True)
    python = python_of(folder / "environment")
    constraints = ROOT / "constraints.txt"
    run(python, "-m", "pip", "install", "--quiet", built.wheel, "--constraint", constraints, folder=folder)
    return python


@pytest.mark.slow
def test_the_sdist_holds_all_sources_and_the_wheel_all_of_the_library(built):
    with tarfile.open(built.sdist) as archive:
        in_sdist = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    expected = set(FILES) | {
        str(path.relative_to(built.source))
        for folder in FOLDERS
        for path in (built.source / folder).rglob("*")
        if path.is_file() and ".egg-info" not in str(path)
    }
    assert expected <= in_sdist, sorted(expected - in_sdist)
    in_wheel = set(zipfile.ZipFile(built.wheel).namelist())
    for root, package in ((built.source / "src", "coda_jax"), (built.source, "experiments")):
        expected = {str(path.relative_to(root)) for path in (root / package).rglob("*") if path.is_file()}
        assert expected <= in_wheel, sorted(expected - in_wheel)
    assert all(name.startswith(("coda_jax/", "experiments/", "coda_jax-")) for name in in_wheel)


IMPORT_ALL = """
import importlib, importlib.metadata, pkgutil, sys
import coda_jax
for module in pkgutil.walk_packages(coda_jax.__path__, "coda_jax."):
    importlib.import_module(module.name)
assert coda_jax.__file__.startswith(sys.prefix), coda_jax.__file__
print(importlib.metadata.version("coda-jax"))
"""

ROLL_OUT = """
import jax
import jax.numpy as jnp
from coda_jax.envs import mamujoco
from coda_jax.envs.rollout import rollout

env = mamujoco.make("3hopper")

def act(obs, carry, key):
    return jnp.zeros((*obs.shape[:2], env.spec.action_dim)), carry

steps = jax.jit(lambda key: rollout(env, act, (), key, num_envs=2, num_steps=5).steps)(jax.random.key(0))
assert steps.obs.shape[-2] == env.spec.num_agents == 3
assert bool(jnp.all(steps.reward > 0.5))  # a hopper that still stands earns 1 a step
print("rolled out")
"""


@pytest.mark.slow
def test_every_module_of_the_wheel_alone_is_imported(installed):
    assert run(installed, "-c", IMPORT_ALL, folder=installed.parents[2]).strip() == PROJECT["version"]


@pytest.mark.slow
def test_the_wheel_alone_rolls_out_a_task(installed):
    assert run(installed, "-c", ROLL_OUT, folder=installed.parents[2]) == "rolled out\n"


@pytest.mark.slow
def test_the_wheel_alone_has_the_commands_and_the_version(installed):
    folder = installed.parents[2]
    listed = subprocess.run([installed.with_name("coda-jax")], capture_output=True, text=True, cwd=folder)
    assert listed.returncode == 0 and "coda-jax COMMAND" in listed.stdout
    assert (
        run(installed, "-c", "import coda_jax; print(coda_jax.__version__)", folder=folder).strip()
        == PROJECT["version"]
    )
    for command in ("run", "play", "data", "report", "generate"):
        assert "usage: coda-jax" in run(installed, "-m", "experiments", command, "--help", folder=folder)


@pytest.mark.slow
def test_the_readme_s_example_runs_on_the_wheel_alone(installed):
    assert run(installed, "-c", api_example(), folder=installed.parents[2])
