"""Executes a notebook without Jupyter: the code cells in order, in one namespace, with figures as pictures.

`python -m tests.notebook examples/tour.ipynb` stores the outputs in the notebook; a second path stores them there.
"""

import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DPI = 72
"""Pixels per inch of the stored pictures."""


def execute(path: Path) -> dict[str, Any]:
    """The notebook with the outputs of its code cells: what they print, and the figures that `plt.show` shows.

    Raises:
        Exception: what a cell raises, with the number of the cell.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            source = "".join(cell["source"])
            try:
                cell["outputs"] = _run(compile(source, f"<cell {count}>", "exec"), namespace)
            except Exception as error:
                error.add_note(f"in code cell {count} of {path}:\n{source}")
                raise
            cell["execution_count"] = count
    return notebook


def _run(program: Any, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = []
    printed = io.StringIO()

    def flush() -> None:
        if printed.getvalue():
            outputs.append({"name": "stdout", "output_type": "stream", "text": printed.getvalue().splitlines(True)})
        printed.seek(0)
        printed.truncate()

    def show() -> None:
        flush()
        for number in plt.get_fignums():
            picture = io.BytesIO()
            plt.figure(number).savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
            data = {"image/png": base64.b64encode(picture.getvalue()).decode() + "\n"}
            outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
        plt.close("all")

    real_show, plt.show = plt.show, show
    try:
        with contextlib.redirect_stdout(printed):
            exec(program, namespace)
        show()
    finally:
        plt.show = real_show
    return outputs


def main() -> None:
    """Runs the command."""
    source, *output = map(Path, sys.argv[1:])
    text = json.dumps(execute(source), indent=1, ensure_ascii=False) + "\n"
    (output or [source])[0].write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
