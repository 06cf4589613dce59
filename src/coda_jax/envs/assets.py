"""The XML files of gymnasium's MuJoCo robots."""

import importlib.util
from pathlib import Path


def gymnasium_xml(name: str) -> Path:
    """The path of one of gymnasium's MuJoCo models (MJCF), such as `hopper.xml`.

    gymnasium itself is not imported: `gymnasium.envs.mujoco` needs packages that plain gymnasium does not install.

    Raises:
        ModuleNotFoundError: if gymnasium is not installed.
        FileNotFoundError: if gymnasium has no such model.
    """
    package = importlib.util.find_spec("gymnasium")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("gymnasium is not installed", name="gymnasium")
    path = Path(package.origin).parent / "envs" / "mujoco" / "assets" / name
    if not path.is_file():
        raise FileNotFoundError(f"gymnasium has no MuJoCo model {name}: {path} is missing")
    return path
