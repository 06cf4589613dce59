"""Compares finished runs: `python -m experiments.report results/comparison/*/ --output results/comparison`.

Each run is a run folder, or the `config.yaml`, `metrics.csv` and `summary.json` kept of one. Leaves a table
(`comparison.md`) and pictures of the returns and of the synthetic data's likelihood, the same bytes for the same runs.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
import yaml

from experiments.console import say
from experiments.errors import UserError, one_line_errors, parse_command
from experiments.figures import comparison_curves, likelihood_curves
from experiments.run_folder import Metrics


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Compares finished runs in a table and in pictures."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The runs' folders."""
    output: Path
    """Folder for the table and the pictures."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What is known of a finished run."""

    label: str
    """Its method, in words."""
    summary: Mapping[str, Any]
    metrics: Mapping[str, np.ndarray]


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with one_line_errors():
        config = parse_command(ReportConfig, args)
        if not config.runs:
            raise UserError("no runs to compare; name their folders")
        runs = [read_run(path) for path in config.runs]
        first = runs[0].summary
        for path, run in zip(config.runs, runs, strict=True):
            for name in ("task", "dataset", "dataset_mean_return"):
                if run.summary[name] != first[name]:
                    raise UserError(f"{path} has {name} {run.summary[name]}, {config.runs[0]} has {first[name]}")
        if config.output.exists() and not config.output.is_dir():
            raise UserError(f"--output {config.output} is a file; name a folder")
        config.output.mkdir(parents=True, exist_ok=True)
        table = markdown(runs)
        (config.output / "comparison.md").write_text(table, encoding="utf-8")
        title = f"{first['task']} {first['dataset']}"
        curves = [(run.label, run.metrics) for run in runs]
        comparison_curves(config.output / "returns.png", title, curves, first["dataset_mean_return"])
        likelihood_curves(config.output / "likelihood.png", title, curves)
        say(table.rstrip())


def read_run(path: Path) -> Run:
    """Reads a run.

    Raises:
        UserError: it is not there, not finished, or not of the main job.
    """
    for name in ("summary.json", "config.yaml", "metrics.csv"):
        if not (path / name).is_file():
            raise UserError(f"{path} is no finished run: it has no {name}")
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        metrics = Metrics(path / "metrics.csv").read()
        needed = {"augmentation", "sample_quality", "standard_error", "dataset_mean_return"} - set(summary)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if needed:
        raise UserError(f"{path} is no run of this version's main job: its summary has no {', '.join(sorted(needed))}")
    label = {"none": "no augmentation", "unconditional": "unconditional", "coda": "CODA"}[summary["augmentation"]]
    if summary["augmentation"] != "none":
        label += f", mix {config['training']['mix_ratio']:g}"
    if summary["augmentation"] == "coda":
        label += f", guidance {summary['guidance']:g}"
    return Run(label=label, summary=summary, metrics=metrics)


def markdown(runs: Sequence[Run]) -> str:
    """The table: returns and, of the last round, what the synthetic data were like."""
    first = runs[0].summary
    lines = [
        f"# {first['task']} {first['dataset']}: episodes of the dataset return {first['dataset_mean_return']:.0f} "
        f"in the mean, {first['dataset_best_return']:.0f} at best",
        "",
        "| run | updates | seeds | return, mean +- s.e. over seeds | each seed | log-likelihood of synthetic actions "
        "| ... unguided | dynamics error | ... unguided | ... actions shuffled |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        summary, last = run.summary, run.metrics["round"] == run.metrics["round"].max()
        spread = "" if summary["standard_error"] is None else f" +- {summary['standard_error']:.0f}"
        cells = [
            run.label,
            f"{summary['updates']:,}",
            str(summary["num_seeds"]),
            f"{summary['mean']:.0f}{spread}",
            ", ".join(f"{value:.0f}" for value in summary["returns_per_seed"]),
        ]
        quality = summary["sample_quality"]
        if quality is None:
            cells += [""] * 5
        else:
            used = quality.get("guided", quality["unguided"])
            cells += [f"{run.metrics[f'{kind}_log_likelihood'][last].mean():.1f}" for kind in ("synthetic", "unguided")]
            cells += [
                f"{errors['dynamics_error']:.2f}"
                for errors in (used, quality["unguided"], quality["real, actions shuffled"])
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
