"""Reads the README's example of the API."""

import pathlib
import re

README = pathlib.Path(__file__).parents[1] / "README.md"

_EXAMPLE = re.compile(r"<!-- api example -->\n+```python\n(.*?)```", flags=re.DOTALL)


def api_example() -> str:
    """The Python block that follows the line `<!-- api example -->`."""
    (program,) = _EXAMPLE.findall(README.read_text(encoding="utf-8"))
    return program
