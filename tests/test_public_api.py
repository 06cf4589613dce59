"""Every export has a docstring with an example, and every example is right."""

import doctest

import jax
import jax.numpy as jnp
import pytest

import coda_jax
from coda_jax import presets

NAMES = {"jax": jax, "jnp": jnp, "cj": coda_jax}
"""The imports that examples assume."""


def documented(name: str) -> object:
    """The object whose docstring documents an export: the export itself, or for plain data its module."""
    return presets if name == "PRESETS" else getattr(coda_jax, name)


def test_no_export_is_listed_twice():
    assert len(set(coda_jax.__all__)) == len(coda_jax.__all__)


def example_of(name: str) -> doctest.DocTest:
    return doctest.DocTestParser().get_doctest(documented(name).__doc__ or "", dict(NAMES), name, None, None)


@pytest.mark.parametrize("name", coda_jax.__all__)
def test_an_export_has_an_example(name):
    assert example_of(name).examples


@pytest.mark.slow
@pytest.mark.parametrize("name", coda_jax.__all__)
def test_an_example_runs_and_prints_what_it_says(name):
    example = example_of(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    output: list[str] = []
    with jax.debug_key_reuse(False):  # examples stand apart, each with the same few keys
        runner.run(example, out=output.append)
    assert runner.failures == 0, "".join(output)
