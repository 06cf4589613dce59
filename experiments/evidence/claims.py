"""The paper's claims, and a verdict on each by a stated rule.

The rules for MaMuJoCo were fixed after the first returns on Replay and before steering and all other returns. The
scale of normalised returns was chosen before the returns on Medium and Poor. That 4ant has no normalised return was
decided after its returns; no verdict depends on it. The rules for the games were fixed after their results.

*A is above B* holds where both 95 % intervals of the mean difference over paired seeds, bootstrap and Student's t, lie
above zero; it does not hold where both lie below; else it is not decidable at this scale. CODA is judged at lambda 0.6,
the value in the paper's figures, not at the best lambda. There is no correction for the number of claims.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.evidence.gathering import CODA, Benchmark, Evidence, Game, Steering
from experiments.evidence.intervals import Difference, differences, paired_difference
from experiments.guidance.settings import SteeringConfig
from experiments.host.cache import plain

HOLDS, FAILS = "holds", "does not hold"
UNDECIDED, NO_RUN = "not decidable at this scale", "not decidable yet: no run"
VERDICTS = (HOLDS, FAILS, UNDECIDED, NO_RUN)

SWEEP = "`python -m experiments.sweep experiments/sweeps/{}.yaml`"
STEERING = "python -m experiments.steering"


class Claim(NamedTuple):
    """One row of the page. figure: the name of a picture, or ""."""

    claim: str
    command: str
    figure: str
    verdict: str
    numbers: str


class Comparison(NamedTuple):
    """A claim that one method is above (sign 1) or below (-1) another."""

    words: str
    task: str
    dataset: str
    method: str
    other: str
    sign: int


COMPARISONS = (
    Comparison("Replay: CODA above no augmentation (6,925 to 6,855)", "2halfcheetah", "replay", CODA, "none", 1),
    Comparison("Replay: CODA above unconditional (6,925 to 6,439)", "2halfcheetah", "replay", CODA, "unconditional", 1),
    Comparison("Replay: unconditional below no augmentation", "2halfcheetah", "replay", "unconditional", "none", -1),
    Comparison("Good: CODA above no augmentation (7,208 to 7,188)", "2halfcheetah", "good", CODA, "none", 1),
    Comparison("Good: CODA above unconditional (7,208 to 7,186)", "2halfcheetah", "good", CODA, "unconditional", 1),
    Comparison(
        "Medium: CODA below unconditional (4,530 to 4,554)", "2halfcheetah", "medium", CODA, "unconditional", -1
    ),
    Comparison("Poor: CODA below unconditional (716 to 2,714)", "2halfcheetah", "poor", CODA, "unconditional", -1),
    Comparison(
        "Poor: unconditional above no augmentation (2,714 to -65)", "2halfcheetah", "poor", "unconditional", "none", 1
    ),
    Comparison("Poor: CODA above no augmentation (716 to -65)", "2halfcheetah", "poor", CODA, "none", 1),
    Comparison("4Ant Replay: CODA above no augmentation (1,876 to 1,858)", "4ant", "replay", CODA, "none", 1),
    Comparison("4Ant Replay: CODA above unconditional (1,876 to 1,742)", "4ant", "replay", CODA, "unconditional", 1),
)
"""Table 1 and Section 6.3, with the paper's means."""


def judge(found: Difference | None, sign: int) -> str:
    """The verdict on a claim that a difference has this sign; None is fewer than two paired seeds."""
    if found is None or found.sign == 0:
        return UNDECIDED
    return HOLDS if found.sign == sign else FAILS


def effect(benchmark: Benchmark, found: Difference) -> str:
    """A gain or loss in a few words: decided if both intervals lie above zero, or both below."""
    kind = {1: "a gain, decided", -1: "harm, decided", 0: "not decided"}[found.sign]
    return f"{' '.join(benchmark[1:])} {found.mean:+.0f} ({kind})"


def words(found: Difference | None, digits: int = 0, unit: str = "") -> str:
    """A difference with both its intervals."""
    if found is None:
        return "fewer than two paired seeds"
    low, high = (f"{value:.{digits}f}" for value in found.bootstrap[1:])
    t_low, t_high = (f"{value:.{digits}f}" for value in found.student[1:])
    return (
        f"{found.mean:+.{digits}f}{unit}, bootstrap [{low}, {high}], t [{t_low}, {t_high}], "
        f"{found.num_seeds} paired seeds"
    )


def downstream_claims(evidence: Evidence) -> list[Claim]:
    """Section 6.3, Table 1 and Figures 4 to 8."""
    claims = []
    for text, task, dataset, method, other, sign in COMPARISONS:
        benchmark = evidence.judged_at(task, dataset, (method, other))
        if benchmark is None:
            claims.append(Claim(text, SWEEP.format("laptop"), "", NO_RUN, ""))
            continue
        found = compare(evidence, benchmark, method, other)
        figure = f"returns_{'_'.join(benchmark)}.png"
        claims.append(
            Claim(text, SWEEP.format(benchmark[0]), figure, judge(found, sign), f"{words(found)} ({benchmark[0]})")
        )
    claims.append(_strongest_gains(evidence))
    return claims


def compare(evidence: Evidence, benchmark: Benchmark, method: str, other: str) -> Difference | None:
    """The paired difference of two methods at a benchmark; None where a cell is missing."""
    a, b = evidence.cell(benchmark, method), evidence.cell(benchmark, other)
    return None if a is None or b is None else paired_difference(a.returns, b.returns)


def _strongest_gains(evidence: Evidence) -> Claim:
    """Section 6.3: gains over the unconditional model, in normalised returns, mean of two datasets against two."""
    text = "CODA's gains over unconditional are larger on Replay and Good than on Medium and Poor"
    methods = (CODA, "unconditional")
    datasets = ("replay", "good", "medium", "poor")

    def is_whole(preset: str) -> bool:
        return all(evidence.comparable((preset, "2halfcheetah", dataset), methods) for dataset in datasets)

    preset = next(filter(is_whole, dict.fromkeys(benchmark[0] for benchmark in evidence.benchmarks())), None)
    if preset is None:
        return Claim(text, SWEEP.format("laptop"), "", NO_RUN, "")
    gains: dict[str, dict[int, float]] = {}
    for dataset in datasets:
        cells = [evidence.cell((preset, "2halfcheetah", dataset), method) for method in methods]
        ours, theirs = (evidence.normalised(cell) for cell in cells if cell is not None)
        gains[dataset] = differences(ours, theirs)

    def both(first: str, second: str) -> dict[int, float]:
        return {s: (gains[first][s] + gains[second][s]) / 2 for s in gains[first] if s in gains[second]}

    found = paired_difference(both("replay", "good"), both("medium", "poor"))
    figure = f"figure4_{preset}.png" if evidence.complete(preset)[0] else ""
    return Claim(text, SWEEP.format(preset), figure, judge(found, 1), f"{words(found, 2)} normalised ({preset})")


def steering_claims(steering: Sequence[Steering]) -> list[Claim]:
    """Section 6.2.1 and Figure 3: 2HalfCheetah Replay, by the first fit."""
    wanted = {"task": "2halfcheetah", "dataset": "replay", "vault": None, "fit_seed": 0}
    fitting = (run for run in steering if all(run.summary[name] == value for name, value in wanted.items()))
    run = next(
        (run for run in fitting if not run.through_denoiser and not run.recorded_steps), None
    )  # of the largest preset
    command = f"`{STEERING if run is None else steering_command(run)}`"
    texts = {
        "rise": "Guidance raises the likelihood: lambda 0.6 above unguided, {} policy",
        "fall": "Likelihood peaks and collapses as lambda grows, {} policy",
        "jump": "Trained policy: very small lambda yields a sharp jump",
    }
    claims = []
    for policy in ("initial", "trained"):
        line = None if run is None else run.curve(policy, "log_likelihood")
        if run is None or line is None or 0.6 not in line.guidance:
            claims += [Claim(texts[name].format(policy), command, "", NO_RUN, "") for name in ("rise", "fall")]
            continue
        figure = f"{run.name}_likelihood.png"
        seeds = line.seeds

        def difference(a: np.ndarray, b: np.ndarray, seeds: Sequence[int] = seeds) -> Difference | None:
            return paired_difference(dict(zip(seeds, a, strict=True)), dict(zip(seeds, b, strict=True)))

        rise = difference(line.at(0.6), line.values[0])
        claims.append(
            Claim(texts["rise"].format(policy), command, figure, judge(rise, 1), f"{words(rise, 1, ' nats')}")
        )
        peak = int(line.values.mean(axis=1).argmax())
        # Collapse: at the largest lambda less than half of the gain at the peak is left.
        half = (line.values[peak] + line.values[0]) / 2
        fall = difference(half, line.values[-1])
        inside = 0 < peak < len(line.guidance) - 1
        numbers = (
            f"peak {line.values[peak].mean():.1f} at lambda {line.guidance[peak]:g}; unguided "
            f"{line.values[0].mean():.1f}; lambda {line.guidance[-1]:g}: {line.values[-1].mean():.1f}"
        )
        claims.append(
            Claim(texts["fall"].format(policy), command, figure, judge(fall, 1) if inside else FAILS, numbers)
        )
        if policy == "trained":
            gain = line.values[peak].mean() - line.values[0].mean()
            jump = difference(line.values[1], line.values[0])
            # A jump: the smallest lambda brings more than a tenth of the gain at the peak.
            over = difference(line.values[1], line.values[0] + 0.1 * gain)
            claims.append(
                Claim(
                    texts["jump"],
                    command,
                    figure,
                    judge(over, 1),
                    f"lambda {line.guidance[1]:g}: {words(jump, 2, ' nats')}; the gain at the peak is {gain:.1f}",
                )
            )
    if not any(claim.claim == texts["jump"] for claim in claims):
        claims.append(Claim(texts["jump"], command, "", NO_RUN, ""))
    return claims


def steering_command(run: Steering) -> str:
    """The command of a steering run: the flags that are not at their defaults."""
    words = [STEERING]
    for name, default in plain(SteeringConfig()).items():
        value = run.config.get(name, default)
        if name != "run_dir" and (value or None) != (default or None):  # 0 and None are the first fit
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)]
    return " ".join(words)


GAME_CLAIMS = (
    ("Figure 1: CODA converges to the optimum of multiplication", "multiplication", "skewed", "coda", True),
    ("Figure 1: no augmentation does not", "multiplication", "skewed", "none", False),
    ("Figure 1: unconditional does not", "multiplication", "skewed", "unconditional", False),
    ("Figure 1: Q-conditioned does, along the boundary", "multiplication", "skewed", "q-conditioned", True),
    ("Figure 2: CODA converges to the optimum of Twin Peaks", "twin-peaks", "uniform", "coda", True),
    ("Figure 2: no augmentation does not", "twin-peaks", "uniform", "none", False),
    ("Figure 2: unconditional does not", "twin-peaks", "uniform", "unconditional", False),
    ("Figure 2: Q-conditioned does not", "twin-peaks", "uniform", "q-conditioned", False),
)
"""Section 6.1: whether a method ends within 1 % of the optimum."""


def game_claims(games: Sequence[Game]) -> list[Claim]:
    """A method reaches the optimum where 15 of 16 seeds end within 1 % of it, and does not where none comes so near.

    Fewer than 16 seeds decide nothing.
    """
    found: Mapping[tuple[str, str], Game] = {(g.summary["game"], g.summary["dataset"]): g for g in games}
    claims = []
    for text, game, dataset, method, reaches in GAME_CLAIMS:
        command = f"`python -m experiments.polynomial --game {game} --dataset {dataset}`"
        kept = found.get((game, dataset))
        if kept is None:
            claims.append(Claim(text, command, "", NO_RUN, ""))
            continue
        returns = np.array(kept.summary["returns_per_seed"][method])
        near = int(np.sum(returns >= 0.99 * kept.summary["optimum"]))
        share = near / len(returns)
        all_near, none_near = share >= 15 / 16, near == 0
        verdict = UNDECIDED
        if len(returns) >= 16 and (all_near or none_near):
            verdict = HOLDS if all_near == reaches else FAILS
        numbers = (
            f"{near} of {len(returns)} seeds; mean return {returns.mean():.3f}, optimum {kept.summary['optimum']:.4f}"
        )
        claims.append(Claim(text, command, f"../{kept.folder}/methods.png", verdict, numbers))
    return claims
