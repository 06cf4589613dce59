"""The report: comparisons of runs, and the page of results with its verdicts, from kept numbers alone."""

import csv
import json
import math
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import yaml
from scipy import stats

from experiments import report
from experiments.evidence import page as results_page
from experiments.evidence.ablations import ablations, gain_over_fits, several_fits
from experiments.evidence.claims import (
    FAILS,
    HOLDS,
    NO_RUN,
    UNDECIDED,
    downstream_claims,
    game_claims,
    judge,
    steering_claims,
)
from experiments.evidence.gathering import gather, method_order
from experiments.evidence.intervals import interquartile_mean, interval, mean, paired_difference
from experiments.evidence.page_tables import variants_table
from experiments.evidence.recorded_runs import cells_of, read_run
from experiments.guidance.curves import Errors, Part, write_points

REPLAY = "Replay: CODA above no augmentation (6,925 to 6,855)"


def keep_run(path, augmentation: str, offset: float, seeds=3, dataset_mean: float = 100.0, **settings):
    """What is kept of a finished run of two rounds; seed s returns offset + 100 round + s."""
    path.mkdir(parents=True)
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    benchmark = {"task": settings.pop("task", "drift"), "dataset": settings.pop("dataset", "replay")}
    guidance = settings.pop("guidance", 0.6)
    values = {"training": {"mix_ratio": 0.5}, "preset": "laptop", "num_seeds": len(seeds), **settings}
    (path / "config.yaml").write_text(yaml.safe_dump(values))
    guided = {"dynamics_error": 0.4, "feature_distance": 0.1} if augmentation == "coda" else None
    kinds = {
        "guided": guided,
        "unguided": {"dynamics_error": 0.3, "feature_distance": 0.1},
        "real, actions shuffled": {"dynamics_error": 0.9},
    }
    final = offset + 200.0 + np.array(seeds)
    summary = {
        **benchmark,
        "augmentation": augmentation,
        "guidance": guidance,
        "updates": 20,
        "num_seeds": len(seeds),
        "seeds": seeds,
        "returns_per_seed": final.tolist(),
        "mean": final.mean(),
        "standard_error": final.std(ddof=1) / np.sqrt(len(seeds)) if len(seeds) > 1 else None,
        "dataset_mean_return": dataset_mean,
        "dataset_best_return": 500.0,
        "sample_quality": None if augmentation == "none" else {k: v for k, v in kinds.items() if v},
        "wall_seconds": {"total": 60.0},
    }
    (path / "summary.json").write_text(json.dumps(summary))
    likelihood = 0.0 if augmentation == "none" else -110.0
    with (path / "metrics.csv").open("w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["round", "seed", "updates", "return", "synthetic_log_likelihood", "unguided_log_likelihood"])
        for round_ in range(3):
            for seed in seeds:
                value = offset + 100 * round_ + seed
                now = (likelihood, likelihood - 5) if round_ else (0.0, 0.0)
                writer.writerow([round_, seed, 10 * round_, value, *now])
    return path


def keep_returns(path, returns: list[float]):
    """Replaces the final returns of a kept run."""
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**summary, "returns_per_seed": returns}))


def keep_steering(
    path,
    likelihoods: dict[float, list[float]],
    preset: str = "laptop",
    through_denoiser: bool = False,
    selection: bool = False,
    recorded_steps: int = 0,
):
    """What is kept of a steering run: the same likelihoods `[seeds]` for both policies; responses only of one kind."""
    errors = (0.5, 0.1, 0.7, 0.2, -3.0) if selection else (0.5, 0.1, 0.7) if through_denoiser else (0.5, 0.1)
    path.mkdir(parents=True)
    points = {
        Part(policy, schedule, 32, scale): {seed: Errors(value, *errors) for seed, value in enumerate(values)}
        for policy in ("initial", "trained")
        for schedule in ("annealed", "constant")
        for scale, values in likelihoods.items()
    }
    write_points(path / "steering.csv", points)
    config = {"preset": preset, "num_trajectories": 128, "guidance": [0.0, 0.6]}
    steered = {"diffusion": {"through_denoiser": True}} if through_denoiser else {}
    steered |= {"recorded_steps": recorded_steps} if recorded_steps else {}
    (path / "config.yaml").write_text(yaml.safe_dump({**config, "steered": steered}))
    summary = {
        "task": "2halfcheetah",
        "dataset": "replay",
        "vault": None,
        "preset": preset,
        "fit_seed": 0,
        "highest_log_likelihood": -110.3,
        "real": {"real": {"dynamics_error": 0.0}, "real, actions shuffled": {"dynamics_error": 0.9}},
        "wall_seconds": {"total": 30.0},
    }
    if selection:
        of_seeds = {"start_shift": [0.0, 0.1], "start_log_likelihood": [-3.0, -4.0]}
        summary["selection"] = {policy: {"data": of_seeds, "roll-outs": of_seeds} for policy in ("initial", "trained")}
    (path / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def kept(tmp_path):
    """Three methods on two datasets, an ablation and a steering run."""
    results = tmp_path / "results"
    for dataset in ("replay", "good"):
        for method, offset in (("none", 0.0), ("unconditional", 20.0), ("coda", 50.0)):
            keep_run(results / f"{dataset}_{method}", method, offset, task="2halfcheetah", dataset=dataset)
    more = {"training": {"mix_ratio": 1.0}}
    keep_run(results / "all_synthetic", "coda", 10.0, task="2halfcheetah", **more)
    provenance = {"device": "cpu", "backend": "cpu", "processor": "Zen", "visible_cores": 2, "platform": "Linux"}
    (results / "good_coda" / "provenance.json").write_text(json.dumps(provenance))
    keep_steering(
        results / "steering", {0.0: [-150, -149], 0.001: [-149.9, -148.9], 0.6: [-111, -110], 100: [-160, -159]}
    )
    return results


@pytest.mark.slow
def test_the_page_and_its_pictures_come_again_with_the_same_bytes(kept, tmp_path):
    pages = [tmp_path / name for name in ("a.md", "b.md")]
    pictures = []
    for page in pages:
        np.random.random(3)  # noqa: NPY002 - whatever else drew from the global generator
        report.main(["--results", str(kept), "--output", str(page)])
        pictures.append({path.name: path.read_bytes() for path in (kept / "figures").iterdir()})
        for path in (kept / "figures").iterdir():
            path.unlink()
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert pictures[0] == pictures[1]
    assert set(pictures[0]) == {
        "ablations_laptop_2halfcheetah_replay.png",
        "variants_laptop_2halfcheetah_replay.png",
        "figure4_laptop.png",
        *(f"{kind}_laptop_2halfcheetah_{d}.png" for kind in ("returns", "likelihood") for d in ("replay", "good")),
        "steering_likelihood.png",
        "steering_quality.png",
    }
    text = pages[0].read_text()
    assert "| laptop | 2halfcheetah | replay | 20 | 201 +- 1 (3) | 221 +- 1 (3) | 251 +- 1 (3) | 100 | 500 |" in text
    assert "alpha (mix) 1" in text and "-40, bootstrap [-40, -40]" in text
    assert "cpu (Zen), 2 cores, Linux | 1 | 1:00 | 0.0 |" in text


def test_words_of_one_s_own_are_taken_over(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "discussion.md").write_text("Samples miss the dynamics.\n")
    report.main(["--results", str(tmp_path / "results"), "--output", str(tmp_path / "page.md")])
    assert "\nSamples miss the dynamics.\n" in (tmp_path / "page.md").read_text()


def test_verdicts_follow_the_numbers(kept):
    verdicts = {claim.claim.split(" (")[0]: claim.verdict for claim in downstream_claims(gather(kept))}
    assert verdicts["Replay: CODA above no augmentation"] == HOLDS
    assert verdicts["Replay: unconditional below no augmentation"] == FAILS
    assert verdicts["Medium: CODA below unconditional"] == NO_RUN
    keep_returns(kept / "replay_coda", [100.0, 201.0, 330.0])
    verdicts = {claim.claim.split(" (")[0]: claim.verdict for claim in downstream_claims(gather(kept))}
    assert verdicts["Replay: CODA above no augmentation"] == UNDECIDED


def test_datasets_are_put_together_by_the_methods_they_all_have(kept):
    keep_run(kept / "replay_coda_1", "coda", 90.0, task="2halfcheetah", guidance=1.0)
    keep_run(kept / "poor_none", "none", 0.0, task="2halfcheetah", dataset="poor")
    evidence = gather(kept)
    benchmarks, methods = evidence.complete("laptop")
    assert [benchmark[2] for benchmark in benchmarks] == ["replay", "good"]
    assert methods == ["none", "unconditional", "coda 0.6"]
    none = evidence.cell(benchmarks[0], "none")
    assert evidence.normalised(none)[0] == pytest.approx(
        (200 - 1) / (500 - 1)
    )  # untrained 1 in the mean, best episode 500


def test_steering_s_verdicts_follow_the_curve(kept):
    claims = steering_claims(gather(kept).steering)
    assert [claim.verdict for claim in claims] == [HOLDS, HOLDS, HOLDS, HOLDS, FAILS]  # no jump at 0.001
    assert claims[0].command == "`python -m experiments.steering --num-trajectories 128 --guidance 0 0.6`"


def test_steering_is_judged_at_the_largest_preset_and_never_at_smoke(kept):
    flat = {0.0: [-150, -149], 0.6: [-160, -159]}
    keep_steering(kept / "a" / "steering", flat, preset="smoke")
    assert steering_claims(gather(kept).steering)[0].verdict == HOLDS
    keep_steering(kept / "z" / "steering", flat, preset="paper")
    claim = steering_claims(gather(kept).steering)[0]
    assert claim.verdict == FAILS and claim.figure == "z_steering_likelihood.png"


@pytest.mark.slow
def test_steering_through_the_denoiser_stands_beside_and_decides_no_claim(kept, tmp_path):
    keep_steering(kept / "a_through", {0.0: [-150, -149], 0.6: [-160, -159]}, through_denoiser=True)
    assert steering_claims(gather(kept).steering)[0].verdict == HOLDS
    report.main(["--results", str(kept), "--output", str(tmp_path / "page.md")])
    rows = [line for line in (tmp_path / "page.md").read_text().splitlines() if "| initial | annealed |" in line]
    assert [("through" in row, row.endswith("| 0.70 +- 0.00 | 0.70 +- 0.00 |")) for row in rows] == [
        (True, True),
        (False, False),
    ]


@pytest.mark.parametrize("damage", ["", "policy,schedule\n", None])
def test_damaged_steering_is_named_in_one_line(kept, capsys, damage):
    file = kept / "steering" / "steering.csv"
    file.write_text(file.read_text()[:-12] if damage is None else damage)
    assert str(file) in refusal(capsys, "--results", kept, "--output", kept / "page.md")


def test_an_ablation_of_one_method_s_own_setting_does_not_take_its_place(kept):
    for name, value in (("num_trajectories", 2000), ("static_trajectories", 50)):
        method = "coda" if name == "num_trajectories" else "unconditional"
        more = {"training": {"mix_ratio": 0.5, name: value}}
        keep_run(kept / f"a_{method}", method, -70.0, task="2halfcheetah", **more)
    evidence = gather(kept)
    assert len({(cell.benchmark, cell.method) for cell in evidence.table}) == len(evidence.table) == 6
    found = {(cell.method, *names) for cell, names in evidence.variants}
    assert {("coda 0.6", "training.num_trajectories"), ("unconditional", "training.static_trajectories")} < found
    assert {claim.claim: claim.verdict for claim in downstream_claims(evidence)}[REPLAY] == HOLDS


def test_variants_are_compared_under_their_own_settings(kept):
    more = {"learner": {"alpha_bc": 2.5}}
    for method, offset in (("none", -10.0), ("coda", 30.0)):
        keep_run(kept / f"b_{method}", method, offset, task="2halfcheetah", **more)
    keep_run(kept / "other_lambda", "coda", 5.0, task="2halfcheetah", guidance=0.1)
    keep_run(kept / "fit_1", "coda", 60.0, task="2halfcheetah", fit_seed=1)
    evidence = gather(kept)
    variants = {(cell.method, *names): cell for cell, names in evidence.variants}
    bc = variants["coda 0.6", "learner.alpha_bc"]
    assert (less := evidence.alike(bc, "none")) is variants["none", "learner.alpha_bc"]
    assert paired_difference(bc.returns, less.returns).mean == 40.0
    assert evidence.alike(bc, "unconditional") is None
    mix = variants["coda 0.6", "training.mix_ratio"]
    assert evidence.alike(mix, "none") is evidence.cell(mix.benchmark, "none")
    assert evidence.reference(variants[("coda 0.1",)]) is evidence.cell(mix.benchmark, "coda 0.6")
    found = {ablation.setting: ablation for ablation in ablations(evidence, mix.benchmark)}
    assert sorted(found) == ["guidance", "learner.alpha_bc", "training.mix_ratio"]
    assert found["guidance"].values == ("0.1", "0.6") and list(found["guidance"].across) == ["unconditional"]
    np.testing.assert_array_equal(found["guidance"].lines["coda"]["0.1"], [5, 5, 5])
    np.testing.assert_array_equal(found["learner.alpha_bc"].lines["coda 0.6"]["2.5"], [40, 40, 40])
    assert found["learner.alpha_bc"].across == {}
    row = next(line for line in variants_table(evidence).splitlines() if "no augmentation | alpha_BC" in line)
    assert row.split(" | ")[7].startswith("-10") and row.endswith("|  |  |")


def test_fits_are_compared_by_seeds_and_episodes_they_share(tmp_path):
    """Against the textbook's two-way analysis of variance; a seed that one fit lacks has no say."""
    keep_run(tmp_path / "none", "none", 0.0, seeds=[0, 1, 2, 3])
    returns = np.array([[10.0, 20.0, 33.0], [14.0, 21.0, 37.0]])
    for fit in (0, 1):
        keep_run(tmp_path / f"fit_{fit}", "coda", 0.0, seeds=[0, 1, 2] + [3] * fit, fit_seed=fit)
        keep_returns(tmp_path / f"fit_{fit}", [*returns[fit], *[1000.0] * fit])
    for fit in (0, 1, 2):
        seeds = [8] if fit == 2 else [8, 9]
        keep_run(tmp_path / f"other_{fit}", "coda", 0.0, seeds=seeds, dataset_mean=90.0, fit_seed=fit)
    found, elsewhere = several_fits(gather(tmp_path))
    assert (found.seeds, found.fit_seeds) == ((0, 1, 2), (0, 1))
    assert (elsewhere.seeds, elsewhere.fit_seeds) == ((8, 9), (0, 1))
    np.testing.assert_array_equal(found.returns, returns)
    # Differences 4, 1 and 4: a paired t test, whose square is the F of two fits.
    difference = returns[1] - returns[0]
    t = difference.mean() / (difference.std(ddof=1) / math.sqrt(3))
    assert (found.spread / found.null_std) ** 2 == pytest.approx(t**2)
    assert found.p == pytest.approx(stats.ttest_rel(*returns).pvalue)
    # Seeds by their mean over fits, less 200, 201 and 202; the other draw has no baseline.
    gain = gain_over_fits(gather(tmp_path), found.benchmark, found.method)
    assert (gain.num_seeds, gain.mean) == (3, pytest.approx(returns.mean() - 201))


def test_a_single_seed_at_a_larger_scale_displaces_nothing(kept):
    for method in ("none", "coda"):
        keep_run(kept / f"paper_{method}", method, -90.0, seeds=1, task="2halfcheetah", preset="paper")
    claim = next(claim for claim in downstream_claims(gather(kept)) if claim.claim == REPLAY)
    assert claim.verdict == HOLDS and "(laptop)" in claim.numbers


def test_equal_returns_score_the_same_whatever_seeds_a_method_has(tmp_path):
    keep_run(tmp_path / "none", "none", 0.0, seeds=2)
    keep_run(tmp_path / "coda", "coda", 0.0, seeds=6)
    evidence = gather(tmp_path)
    few, many = (evidence.normalised(cell) for cell in evidence.table)
    assert few[1] == many[1]


def test_quality_counts_all_runs_of_a_condition(tmp_path):
    keep_run(tmp_path / "a", "coda", 0.0, seeds=[0, 1, 2])
    other = keep_run(tmp_path / "b", "coda", 0.0, seeds=[3])
    summary = json.loads((other / "summary.json").read_text())
    summary["sample_quality"]["guided"]["dynamics_error"] = 0.8
    (other / "summary.json").write_text(json.dumps(summary))
    (cell,) = gather(tmp_path).table
    assert cell.quality("guided", "dynamics_error") == pytest.approx((3 * 0.4 + 0.8) / 4)
    assert cell.quality("guided", "optimism") is None
    summary["sample_quality"]["guided"]["optimism"] = 0.2
    (other / "summary.json").write_text(json.dumps(summary))
    (cell,) = gather(tmp_path).table
    assert cell.quality("guided", "optimism") == pytest.approx(0.2)  # of the run that measured it


def test_runs_of_other_episodes_are_not_compared(kept, capsys):
    other = keep_run(kept / "z", "coda", 0.0, task="2halfcheetah", guidance=1.0, dataset_mean=99.0)
    assert str(other) in refusal(capsys, "--results", kept, "--output", kept / "page.md")


def test_seeds_of_another_draw_of_the_data_are_compared_among_themselves(tmp_path):
    """Machines differ in last bits and so in episodes: other seeds, other episodes, each with a unit of its own."""
    for method, offset in (("none", 0.0), ("coda", 50.0)):
        keep_run(tmp_path / f"a_{method}", method, offset, seeds=[0, 1], task="2halfcheetah")
        other = keep_run(tmp_path / f"b_{method}", method, offset, [4, 5], 120.0, task="2halfcheetah")
        summary = json.loads((other / "summary.json").read_text())
        (other / "summary.json").write_text(json.dumps({**summary, "dataset_best_return": 1000.0}))
    evidence = gather(tmp_path)
    none, coda = evidence.table
    assert list(coda.returns) == [0, 1, 4, 5]
    assert evidence.draws(coda.benchmark) == {(100.0, 500.0): [0, 1], (120.0, 1000.0): [4, 5]}
    zero, scores = 2.5, evidence.normalised(none)
    assert scores[0] == pytest.approx((200 - zero) / (500 - zero))
    assert scores[5] == pytest.approx((205 - zero) / (1000 - zero))
    found = paired_difference(coda.returns, none.returns)
    assert found is not None and (found.num_seeds, found.mean) == (4, 50.0)


def test_a_dataset_no_better_than_untrained_policies_is_not_normalised(kept):
    for file in kept.glob("good_*/summary.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "dataset_best_return": 1.5}))
    evidence = gather(kept)
    benchmarks, _ = evidence.complete("laptop")
    assert [benchmark[2] for benchmark in benchmarks] == ["replay"]
    assert len(evidence.benchmarks()) == 2


def test_a_game_needs_sixteen_seeds_and_is_there_once(tmp_path, capsys):
    def keep_game(name: str, num_seeds: int):
        summary = {"game": "multiplication", "dataset": "skewed", "optimum": 1.0, "wall_seconds": 1.0}
        summary["returns_per_seed"] = {m: [1.0] * num_seeds for m in ("coda", "none", "unconditional", "q-conditioned")}
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))

    keep_game("a", 1)
    assert game_claims(gather(tmp_path).games)[0].verdict == UNDECIDED
    shutil.rmtree(tmp_path / "a")
    keep_game("b", 16)
    assert [claim.verdict for claim in game_claims(gather(tmp_path).games)[:4]] == [HOLDS, FAILS, FAILS, HOLDS]
    keep_game("c", 16)
    assert "same game" in refusal(capsys, "--results", tmp_path, "--output", tmp_path / "page.md")


def test_a_vault_s_path_breaks_no_table_and_no_link(tmp_path):
    path = keep_run(tmp_path / "results" / "vault", "none", 0.0)
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**summary, "vault": "/my data|here/2halfcheetah.vlt/Good one"}))
    report.main(["--results", str(tmp_path / "results"), "--output", str(tmp_path / "page.md")])
    assert "| laptop | drift | 2halfcheetah.vlt_Good_one | 20 |" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "results" / "figures" / "returns_laptop_drift_2halfcheetah.vlt_Good_one.png").exists()


def test_an_empty_folder_decides_nothing(tmp_path):
    (tmp_path / "results").mkdir()
    report.main(["--results", str(tmp_path / "results"), "--output", str(tmp_path / "page.md")])
    text = (tmp_path / "page.md").read_text()
    headlines, claims = text.split("## The paper's claims")
    assert headlines.count(NO_RUN) == 3 and claims.count(NO_RUN) == 25 and HOLDS not in claims


def test_seeds_of_one_condition_are_put_together_and_never_counted_twice(tmp_path, capsys):
    keep_run(tmp_path / "a", "coda", 0.0, seeds=[0, 1])
    keep_run(tmp_path / "b", "coda", 0.0, seeds=[2, 3])
    (cell,) = gather(tmp_path).table
    assert cell.returns == {0: 200.0, 1: 201.0, 2: 202.0, 3: 203.0}
    other = keep_run(tmp_path / "c", "coda", 0.0, seeds=[3])
    assert str(other) in refusal(capsys, "--results", tmp_path, "--output", tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()


def test_a_steering_run_s_own_policies_are_no_runs_of_the_table(tmp_path):
    keep_run(tmp_path / "none", "none", 0.0)
    keep_steering(tmp_path / "steering", {0.0: [-150, -149], 0.6: [-111, -110]})
    keep_run(tmp_path / "steering" / "training", "none", 50.0)
    (cell,) = gather(tmp_path).table
    assert len(cell.returns) == 3


def test_a_steering_run_that_measured_its_starts_has_one_figure_more(tmp_path, capsys):
    line = {0.0: [-150, -149], 0.6: [-111, -110]}
    keep_steering(tmp_path / "free", line, selection=True)
    keep_steering(tmp_path / "held", line, selection=True, recorded_steps=1)
    keep_steering(tmp_path / "older", line, through_denoiser=True)
    report.main(["--results", str(tmp_path), "--output", str(tmp_path / "page.md")])
    text = (tmp_path / "page.md").read_text()
    for name, guidance, is_there in (
        ("free", "| actions alone |", True),
        ("held", "| actions alone, recorded starts |", True),
        ("older", "| through the denoiser |", False),
    ):
        assert (
            (f"{name}_selection.png" in text) is (tmp_path / "figures" / f"{name}_selection.png").exists() is is_there
        )
        assert f"| {name} | 0 {guidance}" in text
    (free,) = (run for run in gather(tmp_path).steering if run.name == "free")
    assert "free_likelihood.png" in steering_claims([free])[0].figure  # the paper's, without recorded starts
    summary = json.loads((tmp_path / "free" / "summary.json").read_text())
    (tmp_path / "free" / "summary.json").write_text(json.dumps({**summary, "selection": 3}))
    assert "selection" in refusal(capsys, "--results", tmp_path, "--output", tmp_path / "page.md")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "{"),
        ("summary.json", '{"augmentation": "none"}'),
        ("summary.json", "null"),
        ("config.yaml", None),
        ("config.yaml", "a: ["),
        ("config.yaml", ""),
        ("config.yaml", "preset: laptop"),
        ("metrics.csv", "round,seed,updates\n0,0,0\n"),
        ("metrics.csv", "round,seed,updates,return\n0,0,0,1.0\n"),
        ("metrics.csv", "round,seed,updates,return\n0,0,0,x\n"),
        ("metrics.csv", ""),
        ("provenance.json", "{}"),
        ("provenance.json", '{"device": "cpu", "backend": "cpu", "visible_cores": "2", "platform": "x"}'),
        ("provenance.json", "[1]"),
    ],
)
def test_a_damaged_run_is_named_in_one_line(tmp_path, capsys, name, content):
    file = keep_run(tmp_path / "none", "none", 0.0) / name
    file.unlink() if content is None else file.write_text(content)
    line = refusal(capsys, "--results", tmp_path, "--output", tmp_path / "page.md")
    assert str(file.parent) in line and name in line


def test_a_baseline_without_synthetic_data_belongs_to_every_mix(tmp_path):
    keep_run(tmp_path / "none", "none", 0.0, training={"mix_ratio": 0.1})
    keep_run(tmp_path / "coda", "coda", 0.0, training={"mix_ratio": 0.7})
    assert {cell.method for cell in gather(tmp_path).table} == {"none", "coda 0.6"}


def test_the_paper_s_scale_is_judged_before_the_laptop_s(kept):
    for method, offset in (("none", 0.0), ("coda", -50.0)):
        keep_run(kept / f"paper_{method}", method, offset, task="2halfcheetah", preset="paper")
    (claim, *_) = downstream_claims(gather(kept))
    assert claim.verdict == FAILS and "(paper)" in claim.numbers


def test_a_run_of_the_tuned_preset_stands_beside_those_of_its_scale(tmp_path):
    tuned = {"burn_in": 1, "critic_rows": "recorded"}
    keep_run(tmp_path / "none", "none", 0.0, training={"mix_ratio": 0.1})
    keep_run(tmp_path / "coda", "coda", -10.0, training={"mix_ratio": 0.1}, guidance=1.0)
    keep_run(tmp_path / "flags", "coda", 5.0, training={"mix_ratio": 0.1, **tuned}, guidance=1.0)
    settings = {"training": {"mix_ratio": 0.1, **tuned}, "guidance": 1.0, "preset": "tuned"}
    keep_run(tmp_path / "word", "coda", 5.0, seeds=[3, 4], **settings)
    evidence = gather(tmp_path)
    (variant,) = (cell for cell, _ in evidence.variants)
    assert sorted(variant.returns) == [0, 1, 2, 3, 4]
    assert evidence.alike(variant, "none") is evidence.cell(("laptop", "drift", "replay"), "none")


def test_intervals_have_the_right_centre_and_width():
    """Against closed forms: t's interval of four numbers, and the bootstrap's standard error for many."""
    found = paired_difference({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0, 9: 50.0}, {0: 0.0, 1: 0.0, 2: 0.0, 3: 0.0})
    assert found.num_seeds == 4 and found.mean == 2.5
    reach = 3.1824463 * math.sqrt(5 / 3) / 2  # t_{0.975, 3}
    np.testing.assert_allclose(found.student, (2.5, 2.5 - reach, 2.5 + reach), rtol=1e-6)
    scores = np.random.default_rng(0).normal(size=(400, 2))
    value, low, high = interval(scores, mean)
    assert value == pytest.approx(scores.mean())
    assert (high - low) == pytest.approx(2 * 1.96 * scores.std() / math.sqrt(800), rel=0.1)
    assert interquartile_mean(np.array([[-1000.0], [1.0], [3.0], [1000.0]])) == 2.0


def test_the_bootstrap_stays_within_a_dataset():
    """Strata: two datasets of constant but different scores leave nothing to vary."""
    assert interval(np.array([[0.0, 100.0]] * 5), mean) == (50.0, 50.0, 50.0)


def test_an_interval_does_not_disturb_the_global_generator():
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    interval(np.ones((3, 1)), mean)
    assert np.random.random() == expected  # noqa: NPY002


def test_too_few_seeds_decide_nothing():
    assert paired_difference({0: 1.0, 1: 1.0}, {1: 0.0, 2: 0.0}) is None
    assert judge(None, 1) == UNDECIDED
    both = paired_difference({0: 1.0, 1: 9.0}, {0: 0.0, 1: 0.0})
    assert both.bootstrap.low > 0 and judge(both, 1) == UNDECIDED  # t knows that two are few


def test_runs_are_compared_and_again_with_the_same_bytes(tmp_path, capsys):
    runs = [keep_run(tmp_path / name, name, offset) for name, offset in (("coda", 50.0), ("none", 0.0))]
    outputs = [tmp_path / "a", tmp_path / "b"]
    for output in outputs:
        report.main([*map(str, runs), "--output", str(output)])
    table = (outputs[0] / "comparison.md").read_text()
    assert (
        "| CODA, mix 0.5, guidance 0.6 | 20 | 3 | 251 +- 1 | 250, 251, 252 | -110.0 | -115.0 | 0.40 | 0.30 | 0.90 |"
        in table
    )
    assert "| no augmentation | 20 | 3 | 201 +- 1 | 200, 201, 202 |  |" in table
    for name in ("comparison.md", "returns.png", "likelihood.png"):
        assert (outputs[0] / name).read_bytes() == (outputs[1] / name).read_bytes()


def test_a_single_seed_has_no_spread(tmp_path):
    run = keep_run(tmp_path / "one", "coda", 0.0, seeds=1)
    report.main([str(run), "--output", str(tmp_path / "out")])
    assert "| 200 |" in (tmp_path / "out" / "comparison.md").read_text()


def refusal(capsys, *args) -> str:
    with pytest.raises(SystemExit) as exit_:
        report.main([*map(str, args)])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    one = keep_run(tmp_path / "one", "coda", 0.0)
    other = keep_run(tmp_path / "other", "coda", 0.0, dataset_mean=90.0)
    assert str(other) in refusal(capsys, one, other, "--output", tmp_path / "out")
    assert "nowhere" in refusal(capsys, tmp_path / "nowhere", "--output", tmp_path / "out")
    assert "nowhere" in refusal(capsys, "--results", tmp_path / "nowhere", "--output", tmp_path / "out")
    assert "named twice" in refusal(capsys, one, tmp_path / "other" / ".." / "one", "--output", tmp_path / "out")
    assert "--output" in refusal(capsys, one)
    assert not (tmp_path / "out").exists()


ROOT = Path(report.__file__).parents[1]


def copy_of_results(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("figures", "checkpoints")
    return Path(shutil.copytree(ROOT / "results", folder / "results", ignore=ignored))


def test_the_committed_page_is_what_the_committed_numbers_give(tmp_path, monkeypatch):
    monkeypatch.setattr(results_page, "draw_all", lambda *_: [])
    results_page.write_page(copy_of_results(tmp_path), tmp_path / "RESULTS.md")
    assert (tmp_path / "RESULTS.md").read_bytes() == (ROOT / "RESULTS.md").read_bytes()


@pytest.mark.slow
def test_the_committed_pictures_are_what_the_committed_numbers_give(tmp_path):
    report.main(["--results", str(copy_of_results(tmp_path)), "--output", str(tmp_path / "RESULTS.md")])
    made, kept = (sorted((folder / "results" / "figures").glob("*.png")) for folder in (tmp_path, ROOT))
    kept = [path for path in kept if not path.name.startswith("share_")]  # by `experiments.share`
    assert [path.name for path in made] == [path.name for path in kept]
    for ours, theirs in zip(made, kept, strict=True):
        np.testing.assert_array_equal(plt.imread(ours), plt.imread(theirs))


def test_a_label_names_what_is_not_the_papers_augmentation():
    results = Path(__file__).parents[2] / "results" / "laptop"
    run = read_run(results / "2halfcheetah-replay-coda-g0.6-laptop-5ec0530561b9")
    assert run.label == "CODA, mix 0.5, guidance 0.6, recorded steps 1, consequences by model"
    assert read_run(results / "2halfcheetah-medium-coda-g1-laptop-2b663c2a8944").label == "CODA, mix 0.1, guidance 1"


def test_runs_with_an_adapted_lambda_are_a_condition_of_their_own(tmp_path):
    for seeds, target in ((range(3), 0.1), (range(3, 6), 0.3)):
        keep_run(tmp_path / str(target), "coda", 5.0, seeds=seeds, guidance="auto", guidance_target=target)
    keep_run(tmp_path / "constant", "coda", 5.0, guidance=1.0)
    runs = [read_run(tmp_path / name) for name in ("0.1", "0.3", "constant")]
    assert runs[0].label == "CODA, mix 0.5, guidance auto, target spread 0.1"
    cells = cells_of(runs)
    assert sorted((cell.method for cell in cells), key=method_order) == ["coda 1", "coda auto", "coda auto"]
    assert [cell.setup["guidance_target"] for cell in cells if cell.method == "coda auto"] == [0.1, 0.3]
