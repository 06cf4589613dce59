"""The recorded comparisons on coordination tasks: returns of all methods, and verdicts on CODA and CODA+.

Verdicts follow the rule of `claims`, over paired seeds.
"""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.evidence.claims import judge, words
from experiments.evidence.intervals import Difference, paired_difference
from experiments.evidence.page_tables import spread, table
from experiments.evidence.recorded_runs import read_settings, read_summary
from experiments.host.cache import flat, plain
from experiments.pipeline.learners import DEFAULT_ALGORITHM
from experiments.tasks.settings import DEFAULTS, dials_of

FIELDS = {
    "task": str,
    "num_seeds": int,
    "updates": int,
    "dataset_mean_return": float,
    "convention_return": float,
    "returns_per_seed": dict[str, list[float]],
}
"""Fields of a comparison's summary, and their types."""

PLUS, PAPER, ORACLE, NONE = "CODA+", "CODA (paper)", "oracle, split rows", "no augmentation"
BASELINES = {
    PLUS: (NONE, "unconditional", "joint-action actor", "model alone, split rows", PAPER),
    PAPER: (NONE, "unconditional"),
}
"""By method, what it is compared with."""


class Comparison(NamedTuple):
    """A finished run of `experiments.coordination`."""

    path: Path
    summary: dict[str, Any]
    settings: dict[str, Any]

    @property
    def returns(self) -> dict[str, list[float]]:
        """The final return of each seed, by method."""
        return self.summary["returns_per_seed"]

    @property
    def responses(self) -> dict[str, list[float]]:
        """The response of each seed's guided trajectories, by method; older runs have none."""
        return self.summary.get("response_per_seed", {})

    @property
    def title(self) -> str:
        """The task, its dials, the sampler's solver, and what else tells comparisons apart, where it is not usual."""
        task = self.summary["task"]
        usual_batch = DEFAULTS[task].training.batch_size
        batch_size = self.settings.get("training", {}).get("batch_size", usual_batch)
        batch = "" if batch_size == usual_batch else f", mini-batches of {batch_size}"
        dials = ", ".join(dials_of(task, self.settings))
        solver = self.settings.get("diffusion", {}).get("solver", "heun")
        algorithm = self.settings.get("algorithm", DEFAULT_ALGORITHM)
        learner = "" if algorithm == DEFAULT_ALGORITHM else f", {algorithm}"
        is_adapted = self.settings.get("guidance") == "auto"
        guidance = f", lambda for a spread of {self.settings['guidance_target']:g}" if is_adapted else ""
        return f"{task.replace('-', ' ')}, {dials}, {solver}{batch}{learner}{guidance}"

    @property
    def command(self) -> str:
        """The command of the run, with the settings that are not the defaults."""
        usual, recorded = flat(plain(DEFAULTS[self.summary["task"]])), flat(self.settings)
        flags = [
            f"--{name.replace('_', '-')} {shlex.join(map(str, value)) if isinstance(value, list) else value}"
            for name, value in recorded.items()
            if name != "run_dir" and value != usual.get(name)
        ]
        return " ".join([f"python -m experiments.coordination --task {self.summary['task']}", *flags])

    def difference(self, method: str, other: str) -> Difference | None:
        """The paired difference of two methods."""
        a, b = (dict(enumerate(self.returns[name])) for name in (method, other))
        return paired_difference(a, b)


def find_comparisons(results: Path) -> list[Comparison]:
    """The finished comparisons below `results/coordination`, by path.

    Raises:
        UserError: a file is damaged.
    """
    files = sorted(results.glob("coordination/*/summary.json"))
    older = {"reward_inputs": "all", "dataset": "scripted"}  # the only way before there were the settings
    return [Comparison(f.parent, read_summary(f.parent, FIELDS), older | read_settings(f.parent)) for f in files]


def coordination_sections(comparisons: Sequence[Comparison], link: str) -> list[str]:
    """An overview, and for each comparison the command, the returns of all methods, the verdicts and the pictures."""
    if not comparisons:
        return []
    sections = [
        "## Coordination over time",
        "Tasks of our own on which miscoordination costs most of the return (docs/coordination.md). CODA+ is not the "
        "paper's method: its trajectories begin at recorded states, a one-step model fitted to the data gives their "
        "consequences, the actor's Q term sees synthetic rows alone and cloning recorded rows alone. *Worst* is the "
        "worst seed; *response* is the share of the effect of guided actions that the generated next states show; the "
        "oracle rolls the policy out in the task itself.",
        overview(comparisons),
    ]
    for run in comparisons:
        name = run.path.name
        rows = [
            (method, spread(returns, 2), f"{min(returns):.2f}", f"{np.median(returns):.2f}", response)
            for method, returns in run.returns.items()
            for response in [f"{np.mean(run.responses[method]):.2f}" if method in run.responses else ""]
        ]
        rows.append(("recorded episodes", f"{run.summary['dataset_mean_return']:.2f}", "", "", ""))
        rows.append(("a team of one convention, without noise", f"{run.summary['convention_return']:.2f}", "", "", ""))
        verdicts = [
            (f"{method} above {other}", f"**{judge(found, 1)}**", words(found, 2))
            for method, others in BASELINES.items()
            for other in others
            if method in run.returns and other in run.returns
            for found in [run.difference(method, other)]
        ]
        sections += [
            f"### {run.title[0].upper()}{run.title[1:]}",
            f"`{run.command}`, {run.summary['num_seeds']} seeds, {run.summary['updates']:,} updates.",
            table(("method", "return", "worst", "median", "response"), rows),
            table(("statement", "verdict", "numbers"), verdicts),
            f"![returns]({link}/{name}/figures/returns.png)\n![conventions]({link}/{name}/figures/conventions.png)",
        ]
    return sections


def coordination_headline(comparisons: Sequence[Comparison]) -> str:
    """One line: in how many comparisons CODA and CODA+ are decidedly above or below no augmentation."""
    counts = []
    for method in (PAPER, PLUS):
        found = [run.difference(method, NONE) for run in comparisons if {method, NONE} <= set(run.returns)]
        signs = Counter(0 if each is None else each.sign for each in found)
        counts.append(f"{method} is above it in {signs[1]} of {len(found)}, below it in {signs[-1]}")
    text = f"against no augmentation, decided: {'; '.join(counts)}" if comparisons else "no recorded runs"
    return f"- **Coordination over time**, {text}."


def overview(comparisons: Sequence[Comparison]) -> str:
    """A table with a row a comparison: how far CODA and CODA+ go from no augmentation to the oracle."""
    methods = (NONE, PAPER, PLUS, ORACLE)
    rows = [
        (
            run.title,
            str(run.summary["num_seeds"]),
            *(f"{np.mean(run.returns[method]):.2f}" if method in run.returns else "" for method in methods),
            *(
                f"**{judge(run.difference(PLUS, other), 1)}**" if {PLUS, other} <= set(run.returns) else ""
                for other in (NONE, "unconditional")
            ),
        )
        for run in comparisons
    ]
    header = ("comparison", "seeds", *methods, "CODA+ above no augmentation", "CODA+ above unconditional")
    return table(header, rows)
