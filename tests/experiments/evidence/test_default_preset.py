"""The default preset's differences to other methods, from made-up returns whose order is known."""

from pathlib import Path

from experiments.evidence.default_preset import default_headline, default_section, rows_of
from experiments.evidence.gathering import Evidence
from experiments.evidence.recorded_runs import Cell, Run
from experiments.host.cache import flat, plain
from experiments.pipeline.settings import DEFAULT_PRESET, PRESETS, uses

USUAL = flat(plain(PRESETS[DEFAULT_PRESET]))
OWN = f"coda {USUAL['guidance']:g}"


def cell(method, returns, dataset="replay", **changed):
    """A cell of the preset's settings, apart from those changed; seeds count from 0."""
    augmentation = method.partition(" ")[0]
    setup = {name: value for name, value in (USUAL | changed).items() if uses(augmentation, name)}
    summary = {"seeds": list(range(len(returns))), "returns_per_seed": returns, "augmentation": augmentation}
    run = Run(Path("run"), "", summary, {}, {}, None)
    return Cell(("laptop", "2halfcheetah", dataset), method, setup, (run,))


def evidence(*cells):
    return Evidence(table=cells, variants=(), steering=(), games=())


NONE = cell("none", [0.0, 1.0, 2.0, 3.0])


def test_the_preset_is_judged_against_both_baselines():
    unguided = cell("unconditional", [9.0, 12.0, 12.0, 12.0], **{"training.critic_rows": "all"})
    page = "\n".join(default_section(evidence(NONE, unguided, cell(OWN, [10.0, 11.1, 12.0, 12.9]))))
    assert "| no augmentation | **holds** | +10, bootstrap [10, 10], t [10, 10], 4 paired seeds |" in page
    assert "| unconditional, critic's rows all | **not decidable at this scale** |" in page


def test_runs_of_other_settings_are_not_the_preset():
    others = (
        cell(OWN, [9.0] * 4, **{"training.critic_rows": "all"}),
        cell(OWN, [9.0] * 4, consequences="model"),
        cell("coda 0.6", [9.0] * 4),
    )
    assert rows_of(evidence(NONE, *others)) == []
    assert default_section(evidence(NONE, *others)) == []
    assert default_headline(evidence(NONE)).endswith("less no augmentation**: no recorded runs.")


def test_the_headline_prefers_the_preset_s_own_fit():
    adam = cell(OWN, [5.0, 6.1, 7.0, 7.9], **{"denoiser.optimizer": "adam", "fit_seed": 1})
    own = cell(OWN, [-5.0, -4.1, -3.0, -1.9])
    assert default_headline(evidence(NONE, adam)).endswith("2halfcheetah replay +5 (a gain, decided).")
    assert default_headline(evidence(NONE, adam, own)).endswith("2halfcheetah replay -5 (harm, decided).")
    assert "optimiser of the fit adam, fit seed 1" in "\n".join(default_section(evidence(NONE, adam)))
