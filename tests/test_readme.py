"""The README is short, and its example of the API runs as it stands there."""

from tests.readme import README, api_example


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 120
    assert len(api_example().splitlines()) <= 12


def test_the_api_example_runs(capsys):
    exec(compile(api_example(), "README.md", "exec"), {})
    assert "return" in capsys.readouterr().out
