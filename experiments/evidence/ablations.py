"""The effect of one setting alone on the gain over no augmentation, and the variance between fits."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from experiments.evidence.gathering import COLUMNS, Benchmark, Evidence, in_order
from experiments.evidence.intervals import Difference, differences, paired_difference
from experiments.evidence.naming import value_name
from experiments.evidence.recorded_runs import Cell

Gains = Float[np.ndarray, "S"]
"""Returns minus those of no augmentation under the same settings, for each seed that both have."""


class Ablation(NamedTuple):
    """The effect of one setting at a benchmark.

    lines:  method -> name of the value -> gains; values ascend.
    across: method -> gains, for methods of Table 1 that do not use the setting.
    """

    setting: str
    values: tuple[str, ...]
    lines: Mapping[str, Mapping[str, Gains]]
    across: Mapping[str, Gains]


MOST_DRAWN = 3
"""The most settings that a drawn variant changes; a table has those that change more."""


def variants_by_settings(evidence: Evidence, benchmark: Benchmark) -> dict[tuple[str, ...], list[Cell]]:
    """The variants at a benchmark, by the names of their changed settings (`guidance` for lambda).

    Without other fits of the denoiser, which `several_fits` returns.
    """
    changed: dict[tuple[str, ...], list[Cell]] = {}
    for cell, names in evidence.variants:
        settings = names if cell.method in COLUMNS else ("guidance", *names)
        if cell.benchmark == benchmark and settings != ("fit_seed",):
            changed.setdefault(settings, []).append(cell)
    return dict(sorted(changed.items(), key=lambda item: (len(item[0]), item[0])))


def drawn_variants(evidence: Evidence, benchmark: Benchmark) -> dict[tuple[str, ...], list[Cell]]:
    """Those of `variants_by_settings` that a panel can show: with few changed settings."""
    found = variants_by_settings(evidence, benchmark)
    return {settings: cells for settings, cells in found.items() if len(settings) <= MOST_DRAWN}


def ablations(evidence: Evidence, benchmark: Benchmark) -> list[Ablation]:
    """One for each setting that at least one run at this benchmark changes alone."""
    members = [cell for cell in evidence.table if cell.benchmark == benchmark and cell.method != "none"]
    found = []
    for (setting, *others), variants in variants_by_settings(evidence, benchmark).items():
        if others:
            continue
        lines: dict[str, dict[str, Gains]] = {}
        values: dict[str, Any] = {}
        varied = {line_of(cell, [setting]) for cell in variants}
        for cell in [*variants, *(cell for cell in members if line_of(cell, [setting]) in varied)]:
            gains = gains_of(evidence, cell)
            if cell.method != "none" and gains is not None:
                value = value_of(cell, setting)
                values[value_name(value)] = value
                lines.setdefault(line_of(cell, [setting]), {})[value_name(value)] = gains
        across = {
            cell.method: gains
            for cell in members
            if setting not in cell.setup
            and line_of(cell, [setting]) not in varied
            and (gains := gains_of(evidence, cell)) is not None
        }
        if lines:
            found.append(Ablation(setting, tuple(sorted(values, key=lambda v: in_order(values[v]))), lines, across))
    return found


def line_of(cell: Cell, settings: Sequence[str]) -> str:
    """The line that a cell is a point of: its method, without lambda if lambda is varied."""
    return "coda" if "guidance" in settings and cell.method.startswith("coda ") else cell.method


def value_of(cell: Cell, setting: str) -> Any:
    """A cell's value of the varied setting."""
    return cell.summary["guidance"] if setting == "guidance" else cell.setup[setting]


def gains_of(evidence: Evidence, cell: Cell) -> Gains | None:
    """A cell's gains; None if no run without augmentation has its settings and seeds."""
    base = evidence.alike(cell, "none")
    gains = {} if base is None else differences(cell.returns, base.returns)
    return np.array(list(gains.values())) if gains else None


class Fits(NamedTuple):
    """Returns of the same seeds, on the same episodes, with several fits of the denoiser: `[fits, seeds]`."""

    benchmark: Benchmark
    method: str
    seeds: tuple[int, ...]
    fit_seeds: tuple[int, ...]
    returns: Float[np.ndarray, "F S"]

    @property
    def means(self) -> Float[np.ndarray, "F"]:
        """The mean return of each fit."""
        return self.returns.mean(axis=1)

    @property
    def spread(self) -> float:
        """The standard deviation of the fits' mean returns."""
        return float(self.means.std(ddof=1))

    @property
    def null_std(self) -> float:
        """Null standard deviation of the fit means, from the residual variance of the two-way model."""
        r = self.returns
        rest = r - r.mean(axis=0, keepdims=True) - r.mean(axis=1, keepdims=True) + r.mean()
        fits, seeds = r.shape
        return float(np.sqrt(np.sum(np.square(rest)) / ((fits - 1) * (seeds - 1)) / seeds))

    @property
    def p(self) -> float:
        """The p value of the F test for equal fits, in a two-way analysis of variance."""
        fits, seeds = self.returns.shape
        if self.null_std == 0.0:  # every seed has the same differences between fits
            return float(self.spread == 0.0)
        return float(stats.f.sf((self.spread / self.null_std) ** 2, fits - 1, (fits - 1) * (seeds - 1)))


def several_fits(evidence: Evidence) -> list[Fits]:
    """For each method of Table 1 and realisation of the data: at least two fits with at least two common seeds."""
    found = []
    for cell in evidence.table:
        if "fit_seed" not in cell.setup:
            continue
        fits = {cell.setup["fit_seed"]: cell}
        for other, names in evidence.variants:
            if names == ("fit_seed",) and (other.benchmark, other.method) == (cell.benchmark, cell.method):
                fits[other.setup["fit_seed"]] = other
        for drawn in evidence.draws(cell.benchmark).values():
            here = sorted(fit for fit, member in fits.items() if len(set(drawn) & set(member.returns)) > 1)
            seeds = [seed for seed in drawn if all(seed in fits[fit].returns for fit in here)]
            if len(here) > 1 and len(seeds) > 1:
                returns = np.array([[fits[fit].returns[seed] for seed in seeds] for fit in here])
                found.append(Fits(cell.benchmark, cell.method, tuple(seeds), tuple(here), returns))
    return found


def gain_over_fits(evidence: Evidence, benchmark: Benchmark, method: str) -> Difference | None:
    """A method's mean over fits minus no augmentation, by seed; None with fewer than two seeds."""
    ours: dict[int, float] = {}
    for fits in several_fits(evidence):
        if (fits.benchmark, fits.method) == (benchmark, method):
            ours |= dict(zip(fits.seeds, fits.returns.mean(axis=0).tolist(), strict=True))
    base = evidence.cell(benchmark, "none")
    return None if base is None else paired_difference(ours, base.returns)
