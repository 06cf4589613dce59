"""Thin host shells around the package: each is run as `python -m experiments.NAME`."""
