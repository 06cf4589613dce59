"""RESULTS.md: claims and verdicts, tables with intervals, and costs, from the recorded numbers."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
from scipy import stats

from experiments.evidence.ablations import MOST_DRAWN, ablations, drawn_variants, several_fits
from experiments.evidence.claims import (
    HOLDS,
    VERDICTS,
    Claim,
    compare,
    downstream_claims,
    effect,
    game_claims,
    steering_claims,
)
from experiments.evidence.coordination import coordination_headline, coordination_sections, find_comparisons
from experiments.evidence.gathering import CODA, Evidence, cell_order, gather
from experiments.evidence.intervals import differences, paired_difference
from experiments.evidence.naming import method_name
from experiments.evidence.own_presets import default_headline, own_presets_section
from experiments.evidence.page_figures import draw_all
from experiments.evidence.page_tables import (
    aggregate_table,
    differences_table,
    fits_gains,
    fits_table,
    returns_table,
    setups,
    spread,
    table,
    variants_table,
)
from experiments.evidence.recorded_runs import SYNTHETIC
from experiments.evidence.recorded_starts import recorded_starts_headline, recorded_starts_sections
from experiments.guidance.curves import POLICIES, Part, Points, curve, sampled
from experiments.host.console import duration
from experiments.host.files import write_atomically

DISCUSSION = "discussion.md"
"""A file beside the recorded runs; its text is included unchanged."""

RULES = """\
Every number here is computed from the recorded runs in `results/`, by `python -m experiments.report`; the same
numbers give the same page and pictures, bit for bit. How to read it:

- The unit is a policy seed. Its return is the mean of its evaluation episodes with the final policy, never the best
  one; +- is the standard error over seeds; episodes are never counted as seeds.
- Methods are compared by the same seeds: same first weights, same starts of the evaluation. *A is above B* **holds**
  where both 95 % intervals of the mean difference lie above zero: the percentile bootstrap (rliable, 2,000 samples),
  which is too narrow for a handful of seeds, and Student's t, which is not. It **does not hold** where both lie below
  zero, and is **not decidable at this scale** otherwise. CODA is judged at lambda 0.6, not at the best lambda.
  There is no correction for the number of claims: of twenty true nulls, one may seem decided.
- All seeds of a run share one denoiser, so they do not sample the variance of its fit; other fits for the same seeds
  have a table of their own.
- Different CPU types round differently, so the same behaviour teams give other episodes on them: another draw of the
  dataset, with denoisers of its own. A seed's difference is always between runs on the same draw. Where a benchmark
  has several draws, they are fewer than its seeds, so the intervals are too narrow; the differences in each draw are
  given too.
- The paper's numbers are for other datasets (OG-MARL's), 16 seeds and 300,000 updates."""


def write_page(results: Path, output: Path) -> str:
    """Writes the page and its pictures; returns a line on its contents.

    Raises:
        UserError: a recorded run cannot be read.
    """
    evidence = gather(results)
    figures = results / "figures"
    drawn = draw_all(evidence, figures)
    comparisons = find_comparisons(results)
    by_topic = {
        "Polynomial games": game_claims(evidence.games),
        "Steering": steering_claims(evidence.steering),
        "Returns on MaMuJoCo": downstream_claims(evidence),
    }
    claims = [claim for topic in by_topic.values() for claim in topic]
    link = Path(os.path.relpath(figures, output.parent)).as_posix()
    own_words = results / DISCUSSION
    sections = [
        "# Results",
        headlines(by_topic, evidence, recorded_starts_headline(results), coordination_headline(comparisons)),
        RULES,
        "## The paper's claims",
        claims_table(claims, link),
        *coordination_sections(comparisons, Path(os.path.relpath(results / "coordination", output.parent)).as_posix()),
        *own_presets_section(evidence, link),
        *recorded_starts_sections(results),
        *downstream_sections(evidence, link),
        *steering_sections(evidence, link),
        "## How sample quality and steering explain the returns",
        explanation(evidence, link),
        own_words.read_text(encoding="utf-8").strip() if own_words.exists() else "",
        "## Costs",
        cost_table(evidence),
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, "\n\n".join(section for section in sections if section) + "\n")
    decided = sum(claim.verdict == HOLDS for claim in claims)
    return f"{output}: {len(claims)} claims, of which {decided} hold; {len(drawn)} pictures in {figures}"


def headlines(
    by_topic: Mapping[str, Sequence[Claim]], evidence: Evidence, from_recorded: str | None, coordination: str
) -> str:
    """Verdicts by topic, the effects of CODA and of the default preset on returns, further topics, and the scale."""
    lines = []
    for topic, claims in by_topic.items():
        counts = Counter(claim.verdict for claim in claims)
        words = ", ".join(f"{verdict}: {counts[verdict]}" for verdict in VERDICTS if counts[verdict])
        lines.append(f"- **{topic}**, {len(claims)} claims of the paper: {words}.")
    effects = []
    for benchmark in evidence.benchmarks():
        gain = compare(evidence, benchmark, CODA, "none")
        if gain is not None:
            effects.append(effect(benchmark, gain))
    lines.append(f"- **CODA at lambda 0.6 less no augmentation**: {'; '.join(effects) or 'no recorded runs'}.")
    lines += [line for line in (default_headline(evidence), from_recorded, coordination) if line is not None]
    lines.append(
        "- **Scale**: a laptop's, a thirtieth of the paper's updates, on datasets of our own; the paper's returns are "
        "neither confirmed nor refuted at its own scale."
    )
    return "\n".join(lines)


def claims_table(claims: Sequence[Claim], link: str) -> str:
    """One row a claim; each command stands once, below the table, under a letter."""
    commands = list(dict.fromkeys(claim.command for claim in claims))
    letters = dict(zip(commands, ascii_uppercase, strict=False))
    rows = [
        (
            claim.claim,
            letters[claim.command],
            f"[picture]({Path(os.path.normpath(f'{link}/{claim.figure}')).as_posix()})" if claim.figure else "",
            f"**{claim.verdict}**",
            claim.numbers,
        )
        for claim in claims
    ]
    legend = "\n".join(f"- {letter}: {command}" for command, letter in letters.items())
    return f"{table(('claim', 'command', 'our figure', 'verdict', 'numbers'), rows)}\n\n{legend}"


def downstream_sections(evidence: Evidence, link: str) -> list[str]:
    """Table 1, its differences, Figure 4, Figures 5 to 8, ablations and fits."""
    sections = ["## Table 1: returns of the final policy", returns_table(evidence)]
    presets = list(dict.fromkeys(benchmark[0] for benchmark in evidence.benchmarks()))
    if evidence.table:
        sections += [
            setups(evidence),
            "Differences over paired seeds:",
            differences_table(evidence),
            "## Figure 4: normalised within a dataset",
            "0 is the mean policy before training, 1 the best of the episodes that a seed learnt from. Over all "
            "datasets that have the three methods, and the seeds that all of them share, with stratified bootstrap "
            "intervals (the datasets are the strata). Where datasets differ more than seeds, the interquartile mean is "
            "that of the middle datasets, so the mean is given too.",
            aggregate_table(evidence),
            "\n".join(
                f"Left out: {' '.join(benchmark)}, whose best episode is within a standard deviation of untrained ones."
                for benchmark in evidence.benchmarks()
                if not evidence.is_normalisable(benchmark)
            ),
            *(f"![returns]({link}/figure4_{preset}.png)" for preset in presets if evidence.complete(preset)[0]),
            "## Figures 5 to 8: learning curves",
            "Bands are one standard error over seeds.",
            "\n".join(f"![returns]({link}/returns_{'_'.join(benchmark)}.png)" for benchmark in evidence.benchmarks()),
        ]
    if evidence.variants:
        sections += [
            "## Ablations and other fits",
            "Conditions with other settings than Table 1's, minus the same method in Table 1 (CODA at other lambdas: "
            "minus CODA at 0.6), and minus the baselines with equal settings.",
            variants_table(evidence),
        ]
    pictures = [
        f"ablations_{'_'.join(benchmark)}.png" for benchmark in evidence.benchmarks() if ablations(evidence, benchmark)
    ]
    if pictures:
        sections += [
            "Gains over no augmentation under the same settings, by the seeds that both have, +- one standard error; "
            "dashed, methods of Table 1 that do not use the setting:",
            "\n".join(f"![ablations]({link}/{name})" for name in pictures),
        ]
    curves = [
        f"variants_{'_'.join(benchmark)}.png"
        for benchmark in evidence.benchmarks()
        if drawn_variants(evidence, benchmark)
    ]
    if curves:
        sections += [
            f"Learning curves where up to {MOST_DRAWN} settings were changed, beside those of Table 1 (dotted, no "
            "augmentation; dashed, unconditional):",
            "\n".join(f"![variants]({link}/{name})" for name in curves),
        ]
    if several_fits(evidence):
        sections += [
            "Other fits of the denoiser, for the same seeds on the same episodes. The *null standard deviation* is "
            "that of the fit means if all fits were the same, from the residual variance of a two-way analysis of "
            "variance; p is that of its F test:",
            fits_table(evidence),
            "With each seed's mean over all its fits in place of one fit's return:",
            fits_gains(evidence),
        ]
    return sections


def steering_sections(evidence: Evidence, link: str) -> list[str]:
    """Figure 3, and measures that the paper does not report."""
    rows = []
    for run in evidence.steering:
        numbers, schedules = sampled(run.points)
        for policy in POLICIES:
            for schedule in schedules:
                for num_steps in numbers:
                    lines = [
                        curve(run.points, policy, schedule, num_steps, name)
                        for name in ("log_likelihood", "dynamics_error", "feature_distance")
                    ]
                    likelihood, dynamics, distance = lines
                    if likelihood is None or dynamics is None or distance is None:
                        continue
                    peak = int(likelihood.values.mean(axis=1).argmax())
                    first, scale = float(likelihood.guidance[1]), float(likelihood.guidance[peak])
                    rows.append(
                        (
                            run.name,
                            str(run.summary["fit_seed"]),
                            run.guidance,
                            policy,
                            schedule,
                            str(num_steps),
                            *(spread(likelihood.values[at].tolist(), 1) for at in (0, 1, peak, -1)),
                            f"{scale:g}",
                            *(spread(line.values[at].tolist(), 2) for line in (dynamics, distance) for at in (0, peak)),
                            *(response(run.points, (policy, schedule, num_steps, at)) for at in (first, scale)),
                        )
                    )
    header = (
        "run",
        "fit",
        "guided",
        "policy",
        "schedule",
        "N",
        "log-likelihood unguided",
        "smallest lambda",
        "peak",
        "largest lambda",
        "peak's lambda",
        "dynamics error unguided",
        "at peak",
        "distance to data unguided",
        "at peak",
        "response to actions, smallest lambda",
        "at peak",
    )
    pictures = [f"![{kind}]({link}/{run.name}_{kind}.png)" for run in evidence.steering for kind in run.figures]
    return [
        "## Figure 3: steering, and its cost",
        "Mean action log-likelihood of generated trajectories under the policy they are steered toward (Gaussian, "
        "standard deviation 1, summed over horizon and agents), mean +- s.e. over seeds; all lambdas share the noise.",
        "The response to actions is the regression coefficient of the change of the generated next states on that "
        "in the simulator, for the same change of the actions: 1 if they change as in the simulator, 0 if not at all.",
        table(header, rows),
        "\n".join(pictures),
    ]


def response(points: Points, at: tuple[str, str, int, float]) -> str:
    """The action response at a point, over seeds; empty if it was not measured."""
    values = [errors.action_response for errors in points[Part(*at)].values()]
    return spread(values, 2) if np.isfinite(values).all() else ""


def explanation(evidence: Evidence, link: str) -> str:
    """Sample quality, steering and gain in return of each method, and their rank correlations."""
    rows, found = [], []
    other_lambdas = [cell for cell, names in evidence.variants if not names]
    for cell in sorted([*evidence.table, *other_lambdas], key=cell_order):
        if cell.summary["augmentation"] == "none":
            continue
        last = cell.metrics["round"] == cell.metrics["round"].max()
        columns = [cell.metrics.get(f"{kind}_log_likelihood") for kind in ("synthetic", "unguided")]
        likelihoods = [None if column is None else float(column[last].mean()) for column in columns]
        kind = SYNTHETIC[cell.summary["augmentation"]]
        shuffled = "real, actions shuffled"
        dynamics = cell.quality(kind, "dynamics_error")
        errors = [
            *(dynamics, cell.quality(shuffled, "dynamics_error"), cell.quality(kind, "feature_distance")),
            *(cell.quality(name, "optimism") for name in (kind, f"{kind}, first round", shuffled)),
        ]
        base = evidence.cell(cell.benchmark, "none")
        gain = None if base is None else paired_difference(cell.returns, base.returns)
        if base is not None and gain is not None and evidence.is_normalisable(cell.benchmark):
            shared = differences(evidence.normalised(cell), evidence.normalised(base))
            found.append((float(np.mean(list(shared.values()))), dynamics, likelihoods[0]))
        rows.append(
            (
                *cell.benchmark,
                method_name(cell.method),
                *("" if error is None else f"{error:.2f}" for error in errors),
                *("" if likelihood is None else f"{likelihood:.1f}" for likelihood in likelihoods),
                "" if gain is None else f"{gain.mean:+,.0f}",
            )
        )
    header = (
        "preset",
        "task",
        "dataset",
        "method",
        "dynamics error",
        "... actions shuffled",
        "distance to data",
        "optimism",
        "... of the first set",
        "... actions shuffled",
        "log-likelihood of the synthetic actions",
        "... unguided",
        "gain over no augmentation, shared seeds",
    )
    text = table(header, rows)
    pictures = "\n".join(
        f"![likelihood]({link}/likelihood_{'_'.join(benchmark)}.png)" for benchmark in evidence.benchmarks()
    )
    if len(found) < 4:
        return f"{text}\n\n{pictures}"
    gains, *causes = zip(*found, strict=True)
    error, likelihood = (rank_correlation(cause, gains) for cause in causes)
    return (
        f"{text}\n\nOver these {len(found)} cells, the rank correlation of the gain, normalised as in Figure 4, "
        f"with the dynamics error is {error} and with the log-likelihood of the synthetic actions "
        f"{likelihood}; the p values assume independent cells, which those of one dataset are not.\n\n{pictures}"
    )


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> str:
    """Spearman's rank correlation and its p value, in words."""
    if min(np.ptp(a), np.ptp(b)) == 0:
        return "undefined"
    rho, p = stats.spearmanr(a, b)
    return f"{rho:.2f} (p = {p:.2f})"


def cost_table(evidence: Evidence) -> str:
    """Wall time and core-hours of every table, by machine."""
    costs: dict[tuple[str, str], list[tuple[float, float | None]]] = {}

    def book(section: str, provenance: Any, seconds: float) -> None:
        machine, cores = "not recorded", None
        if provenance is not None:
            cores = provenance["visible_cores"]
            backend, device = provenance["backend"], provenance["device"]
            kind = provenance.get("processor", "kind not recorded") if backend == "cpu" else device
            machine = f"{backend} ({kind}), {cores} cores, {provenance['platform']}"
        costs.setdefault((section, machine), []).append((seconds, cores))

    members = [("Table 1, Figures 4 to 8", cell) for cell in evidence.table]
    members += [("ablations and other fits", cell) for cell, _ in evidence.variants]
    for section, cell in members:
        for run in cell.runs:
            book(f"{section} ({cell.benchmark[0]})", run.provenance, run.summary["wall_seconds"]["total"])
    for run in evidence.steering:
        book("steering", run.provenance, run.summary["wall_seconds"]["total"])
        if run.training is not None:
            training = run.training
            book("policies for steering", training.provenance, training.summary["wall_seconds"]["total"])
    for game in evidence.games:
        book("polynomial games", game.provenance, game.summary["wall_seconds"])
    rows = []
    for (section, machine), booked in costs.items():
        seconds = sum(wall for wall, _ in booked)
        cores = booked[0][1]
        hours = "" if cores is None else f"{seconds * cores / 3600:.1f}"
        rows.append((section, machine, str(len(booked)), duration(seconds), hours))
    return table(("table", "machine", "runs", "wall time", "core-hours"), rows)
