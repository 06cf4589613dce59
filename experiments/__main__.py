"""The commands by one name: `coda-jax run`, `coda-jax play RUN`, ...; `coda-jax` alone lists them."""

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

COMMANDS = {
    "run": ("mamujoco", "train on a MaMuJoCo dataset or vault: the main job"),
    "play": ("play", "evaluate, film and export the trained policies of a run"),
    "generate": ("generate", "sample synthetic trajectories of a run, as arrays or a vault"),
    "report": ("report", "compare runs, or make the page of results"),
    "sweep": ("sweep", "run the main job for all settings in a file"),
    "data": ("data", "inspect, download, convert and film datasets"),
    "polynomial": ("polynomial", "the polynomial games (Figures 1 and 2)"),
    "share": ("share", "the share of on-policy data that frees the agents, in theory"),
    "coordination": ("coordination", "tasks of coordination over time"),
    "response-map": ("response_map", "return against share and response of synthetic data"),
    "steering": ("steering", "guidance and its effect on samples (Figure 3)"),
    "consequences": ("consequences", "sources of the consequences of guided samples"),
    "values": ("values", "values of trained critics beside returns in the simulator"),
    "fit-study": ("fit_study", "sample quality by settings of fit and sampler"),
    "collect": ("collect", "train the behaviour teams of a task online"),
    "conformance": ("conformance", "compare MJX with MuJoCo in C"),
    "benchmark": ("benchmark", "time the components on this machine"),
}
"""For each command its module in `experiments` and its purpose."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command with the rest of the command line.

    Raises:
        SystemExit: status 2 for an unknown command.
    """
    name, *rest = (sys.argv[1:] if args is None else list(args)) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(importlib.metadata.version("coda-jax"))
    elif name not in COMMANDS:
        similar = difflib.get_close_matches(name, COMMANDS, n=1) or [", ".join(COMMANDS)]
        print(f"error: there is no command '{name}'; did you mean: {similar[0]}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv = [f"coda-jax {name}", *rest]  # the commands read it, and their help names it
        importlib.import_module(f"experiments.{COMMANDS[name][0]}").main()


def usage() -> str:
    """All commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(["usage: coda-jax COMMAND [FLAGS]", "", *lines, "", "coda-jax COMMAND --help shows its flags"])


if __name__ == "__main__":
    main()
