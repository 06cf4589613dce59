"""Offline datasets: episodes, windows, vaults on disk and the behaviour teams that fill them."""
