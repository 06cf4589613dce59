"""Comparison of finished runs: a table, and figures of the returns and of the synthetic data's likelihood."""

from collections.abc import Sequence
from pathlib import Path

from experiments.evidence.choice import write_choice
from experiments.evidence.recorded_runs import SYNTHETIC, Run, dataset_name, read_run
from experiments.host.console import say
from experiments.host.errors import UserError
from experiments.host.plots import comparison_curves, likelihood_curves


def compare_runs(paths: Sequence[Path], output: Path) -> None:
    """Writes `comparison.md`, `returns.png`, `likelihood.png` and `choice.png`, the same bytes for the same runs.

    Raises:
        UserError: a run is named twice or cannot be read, the runs differ in task or dataset, or the output is a file.
    """
    for number, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:number]]:
            raise UserError(f"{path} is named twice; name each run once")
    runs = [read_run(path) for path in paths]
    first = runs[0].summary
    for path, run in zip(paths, runs, strict=True):
        for name in ("task", "dataset", "vault", "dataset_mean_return"):
            if run.summary.get(name) != first.get(name):
                raise UserError(
                    f"{path} has {name} {run.summary.get(name)}, {paths[0]} has {first.get(name)}; "
                    "a comparison needs runs on the same episodes of one task"
                )
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; name a folder")
    output.mkdir(parents=True, exist_ok=True)
    title = f"{first['task']} {dataset_name(first)}"
    table = markdown(runs) + write_choice(runs, title, output)
    (output / "comparison.md").write_text(table, encoding="utf-8")
    curves = [(run.label, run.metrics) for run in runs]
    comparison_curves(output / "returns.png", title, curves, [first["dataset_mean_return"]])
    likelihood_curves(output / "likelihood.png", title, curves)
    say(table.rstrip())
    say(f"{output}: comparison.md, returns.png, likelihood.png and choice.png")


def markdown(runs: Sequence[Run]) -> str:
    """The table: returns, and the quality of the synthetic data in the last round."""
    first = runs[0].summary
    lines = [
        f"# {first['task']} {dataset_name(first)}: episodes of the dataset return {first['dataset_mean_return']:.0f} "
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
            kinds = (SYNTHETIC[summary["augmentation"]], "unguided", "real, actions shuffled")
            columns = [run.metrics.get(f"{kind}_log_likelihood") for kind in ("synthetic", "unguided")]
            cells += ["" if column is None else f"{column[last].mean():.1f}" for column in columns]
            cells += [f"{quality[kind]['dynamics_error']:.2f}" if kind in quality else "" for kind in kinds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
