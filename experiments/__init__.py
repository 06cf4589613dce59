"""Thin host shells around the package: each is run as `python -m experiments.NAME`."""

import os
import sys

if sys.flags.optimize > 1:
    print("error: PYTHONOPTIMIZE is 2, but libraries need their docstrings; unset it", file=sys.stderr)
    sys.exit(2)

os.environ["MPLBACKEND"] = "agg"  # figures go to files; matplotlib reads this while it is imported
