"""Published statistics of OG-MARL's datasets: the returns of their episodes."""

from typing import NamedTuple


class PublishedCard(NamedTuple):
    """Published statistics of the episode returns of a dataset."""

    mean: float
    std: float
    min: float
    max: float


PUBLISHED_CARDS = {
    ("2halfcheetah", "good"): PublishedCard(6924.0, 1270.0, 803.0, 9132.0),
    ("2halfcheetah", "medium"): PublishedCard(1485.0, 469.0, 689.0, 2332.0),
    ("2halfcheetah", "poor"): PublishedCard(400.0, 334.0, -191.0, 905.0),
    ("2halfcheetah", "replay"): PublishedCard(2767.0, 1337.0, -876.0, 4229.0),
    ("4ant", "replay"): PublishedCard(923.0, 860.0, -2034.0, 2286.0),
}
"""By task and dataset.

`replay` is from OG-MARL's `gymnasium_mamujoco`, read off a histogram; the others are from its `mamujoco`.
"""
