"""The package needs what it declares and nothing else: its imports, and its wheel alone in an empty environment."""

import ast
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib
import venv

import pytest

from tests.readme import api_example

ROOT = pathlib.Path(__file__).parents[1]


def distribution_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def imported_packages(folder: pathlib.Path) -> set[str]:
    """The top-level packages that the modules below a folder import."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"coda_jax"}


def test_every_import_of_the_library_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {distribution_of(requirement) for requirement in project["dependencies"]}
    provided_by = importlib.metadata.packages_distributions()
    for package in imported_packages(ROOT / "src"):
        names = {name.lower().replace("_", "-") for name in provided_by[package]}
        assert names & declared, f"{package}, of {names}, is imported and not declared"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """The Python of an environment outside of the checkout with the wheel alone."""
    folder = tmp_path_factory.mktemp("install")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"

    def pip(*arguments: object) -> None:
        command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
        subprocess.run(command, check=True, cwd=folder)

    pip("install", "build")
    source = folder / "source"
    subprocess.run(["git", "clone", "-q", ROOT, source], check=True)
    subprocess.run([python, "-m", "build", "--outdir", folder / "dist", source], check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    assert sdist.stat().st_size > wheel.stat().st_size  # it has the tests and the commands too
    pip("install", wheel, "--constraint", ROOT / "constraints.txt")
    return python


def run(python: pathlib.Path, program: str) -> str:
    command = [python, "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=python.parents[2])
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.slow
def test_the_wheel_alone_imports_every_module_and_runs(installed):
    imports = (
        "import importlib, pkgutil, coda_jax\n"
        "for module in pkgutil.walk_packages(coda_jax.__path__, 'coda_jax.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(coda_jax.__file__)"
    )
    assert str(installed.parents[2]) in run(installed, imports)
    roll_out = (
        "import jax, jax.numpy as jnp, coda_jax as cj\n"
        "env = cj.make_env('2halfcheetah')\n"
        "act = lambda obs, carry, key: (jnp.zeros((2, 2, 3)), carry)\n"
        "print(jax.jit(lambda key: cj.rollout(env, act, (), key, 2, 3).steps.reward)(jax.random.key(0)).shape)"
    )
    assert "(3, 2)" in run(installed, roll_out)


@pytest.mark.slow
def test_the_readme_s_example_runs_on_the_wheel_alone(installed):
    assert "return" in run(installed, api_example())
