"""Datasets on the host: named ones, cards, downloads, films."""
