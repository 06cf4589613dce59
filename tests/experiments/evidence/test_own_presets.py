"""Differences of the presets of our own to other methods, from made-up returns whose order is known."""

from pathlib import Path

from experiments.evidence.gathering import Evidence
from experiments.evidence.own_presets import OWN, default_headline, own_presets_section, rows_of
from experiments.evidence.recorded_runs import Cell, Run
from experiments.pipeline.settings import DEFAULT_PRESET, uses

USUAL = OWN[DEFAULT_PRESET]
METHOD = f"coda {USUAL['guidance']:g}"


def cell(method, returns, dataset="replay", **changed):
    """A cell of the preset's settings, apart from those changed; seeds count from 0."""
    augmentation = method.partition(" ")[0]
    setup = {name: value for name, value in (USUAL | changed).items() if name != "preset" and uses(augmentation, name)}
    summary = {"seeds": list(range(len(returns))), "returns_per_seed": returns, "augmentation": augmentation}
    run = Run(Path("run"), "", summary, {}, {}, None)
    return Cell(("laptop", "2halfcheetah", dataset), method, setup, (run,))


def evidence(*cells):
    return Evidence(table=cells, variants=(), steering=(), games=())


NONE = cell("none", [0.0, 1.0, 2.0, 3.0])


def test_a_preset_is_judged_against_both_baselines_and_the_model_alone():
    own, plus = cell(METHOD, [10.0, 11.1, 12.0, 12.9]), cell(METHOD, [10.0, 11.1, 12.0, 12.9], **OWN["plus"])
    alone = cell("model", [10.0, 11.2, 12.0, 12.8], **OWN["plus"])
    unguided = cell("unconditional", [9.0, 12.0, 12.0, 12.0], **{"training.critic_rows": "all"})
    of_another_learner = cell("unconditional", [0.0] * 4, **{"learner.decay_updates": 100})
    cells = NONE, unguided, of_another_learner, alone, own, plus
    page = "\n".join(own_presets_section(evidence(*cells), "figures"))
    above_none = "| no augmentation | **holds** | +10, bootstrap [10, 10], t [10, 10], 4 paired seeds |"
    for preset, others in (("tuned", ["unconditional, critic's rows all"]), ("plus", ["unconditional", "model alone"])):
        rows = [line for line in page.splitlines() if line.startswith(f"| {preset} | 2halfcheetah |")]
        assert above_none in rows[0] and len(rows) == 1 + len(others)
        for row, other in zip(rows[1:], others, strict=True):
            assert f"| {other} | **not decidable at this scale** |" in row


def test_runs_of_other_settings_are_not_the_preset():
    others = (
        cell(METHOD, [9.0] * 4, **{"training.critic_rows": "all"}),
        cell(METHOD, [9.0] * 4, consequences="score"),
        cell("coda 0.6", [9.0] * 4),
    )
    assert rows_of(evidence(NONE, *others), DEFAULT_PRESET) == []
    assert own_presets_section(evidence(NONE, *others), "figures") == []
    assert default_headline(evidence(NONE)).endswith("less no augmentation**: no recorded runs.")


def test_the_headline_prefers_the_preset_s_own_fit():
    adam = cell(METHOD, [5.0, 6.1, 7.0, 7.9], **{"denoiser.optimizer": "adam", "fit_seed": 1})
    own = cell(METHOD, [-5.0, -4.1, -3.0, -1.9])
    assert default_headline(evidence(NONE, adam)).endswith("2halfcheetah replay +5 (a gain, decided).")
    assert default_headline(evidence(NONE, adam, own)).endswith("2halfcheetah replay -5 (harm, decided).")
    assert "optimiser of the fit adam, fit seed 1" in "\n".join(own_presets_section(evidence(NONE, adam), "figures"))
