"""`--config`: a run's settings are read back as they were, flags beside it override, bad files are one line."""

import dataclasses
import json

import pytest
import yaml

from experiments import mamujoco
from experiments.host.errors import UserError
from experiments.pipeline import run
from experiments.pipeline.flags import parse_experiment
from experiments.pipeline.run import identity_of, run_dir_of

GIVEN = (
    *("--preset", "smoke", "--vault", "some where/Replay.vlt", "--guidance", "0.25", "--no-standardise"),
    *("--learner.critic-widths", "8", "16", "--diffusion.through-denoiser", "--seed", "3"),
    *("--data.max-transitions", "500", "--diffusion.solver", "dpm++", "--learner.policy-learning-rate", "1e-05"),
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(identity_of(parse_experiment(GIVEN)), sort_keys=False))
    return path


@pytest.mark.parametrize(
    "given",
    [(), ("--preset", "smoke"), ("--preset", "paper"), ("--guidance", "auto", "--guidance-target", "0.1"), GIVEN],
)
@pytest.mark.parametrize("write", [yaml.safe_dump, json.dumps])
def test_the_settings_of_a_run_are_read_back(tmp_path, given, write):
    config = parse_experiment(given)
    (tmp_path / "config").write_text(write(identity_of(config)))
    found = parse_experiment(["--config", str(tmp_path / "config")])
    assert found == config
    assert run_dir_of(found) == run_dir_of(config)


def test_flags_beside_it_override_wherever_they_stand(file):
    config = parse_experiment(GIVEN)
    for args in ([f"--config={file}", "--guidance", "0.5"], ["--guidance", "0.5", "--config", str(file)]):
        assert parse_experiment(args) == dataclasses.replace(config, guidance=0.5)


def test_what_a_file_lacks_is_its_preset_s(tmp_path):
    (tmp_path / "config.yaml").write_text("preset: smoke\ntraining: {horizon: 7}\n")
    found, smoke = (
        parse_experiment(["--config", str(tmp_path / "config.yaml")]),
        parse_experiment(["--preset", "smoke"]),
    )
    assert found == dataclasses.replace(smoke, training=dataclasses.replace(smoke.training, horizon=7))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("guidance: much", ["guidance", "much"]),
        ("no_such: 1", ["no-such"]),
        ("training: {no_such: 1}", ["no-such"]),
        ("preset: huge", ["huge"]),
        ("[1, 2]", ["needs settings"]),
        ("3: 4", ["needs settings"]),
        ("a: [", ["no YAML"]),
        ("[" * 3000, ["no YAML"]),
        ("task: &a [*a]", ["no YAML", "contains itself"]),
        ("learner: &a {learner: *a}", ["no YAML", "contains itself"]),
        ("learner: " + "{a: " * 40 + "1" + "}" * 40, ["no YAML", "nested"]),
        ("seed: 1\nseed: 2", ["no YAML", "a second time"]),
        ("", ["needs settings"]),
    ],
)
def test_bad_files_are_one_line_that_names_the_file(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        parse_experiment(["--config", str(path)])
    assert all(word in str(error.value) for word in [str(path), *words]), error.value
    assert len(str(error.value).splitlines()) == 1


def test_bad_uses_are_one_line(file, tmp_path):
    for args, words in (
        (["--config"], "needs the path"),
        (["--config", "--guidance"], "needs the path"),
        (["--config", str(tmp_path / "nowhere")], "No such file"),
        (["--config", str(file), "--preset", "paper"], "leave --preset out"),
    ):
        with pytest.raises(UserError, match=words):
            parse_experiment(args)


def test_the_main_job_takes_it(file, monkeypatch):
    seen = []
    monkeypatch.setattr(mamujoco, "run", seen.append)
    mamujoco.main(["--config", str(file), "--seed", "9"])
    assert (seen[0].seed, seen[0].guidance) == (9, 0.25)
    assert run.identity_of(seen[0])["learner"]["critic_widths"] == [8, 16]


def test_the_help_tells_of_it(capsys):
    with pytest.raises(SystemExit):
        parse_experiment(["--help"])
    assert "--config FILE" in capsys.readouterr().out
