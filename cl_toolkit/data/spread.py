"""A part of some examples that stands for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from cl_toolkit.data.splits import taken

GOLDEN = (5**0.5 - 1) / 2


def spread(examples: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """At most `limit` of the examples (None: all), spread evenly over them, in their order, without a draw.

    One of each of `limit` equal stretches, at a place that moves from stretch to stretch by the golden ratio: of a file
    sorted by class, or in which classes take turns, not one class alone.
    """
    count = len(examples)
    if limit is None or limit >= count:
        return examples
    if limit == 0:
        return examples[:0]
    bounds = [i * count // limit for i in range(limit + 1)]
    places = [low + int((i * GOLDEN) % 1 * (high - low)) for i, (low, high) in enumerate(pairwise(bounds))]
    return taken(examples, places)
