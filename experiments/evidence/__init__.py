"""Recorded runs, and the page of results made from them."""
