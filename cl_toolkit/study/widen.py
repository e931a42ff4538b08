"""A grid whose best value lies at its edge grows, for all methods by equally many trials.

In a round every method gets as many further trials as the method has whose choice lies at the most edges (fewer where some
method has no more). Each is the method's chosen trial with one value changed: first a step beyond each edge, then the middle of
the gaps beside the chosen values, then again of what is left of these gaps. Values go on by their last ratio where they are
spaced geometrically, else by their last difference; one that its key does not take is not tried. Ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import pstdev

from cl_toolkit.study.choice import Outcome
from cl_toolkit.study.search import Trial, number, rounded

Number = int | float
HALVINGS = 4
"""How often a gap is halved in a round."""


def tried(made: Sequence[Outcome], method: str) -> dict[str, list[Number]]:
    """The numeric axes of a method with all values that were tried, sorted; those with one value alone are none."""
    values = [o.trial.values for o in made if o.trial.method == method]
    axes = {key: sorted({v[key] for v in values if number(v.get(key))}) for key in values[0]}
    return {key: found for key, found in axes.items() if len(found) > 1}


def geometric(values: Sequence[Number]) -> bool:
    """Whether sorted values are spaced by their ratios, not by their differences: what varies less; two are, being positive."""
    if values[0] <= 0:
        return False
    steps = [b - a for a, b in itertools.pairwise(values)]
    ratios = [math.log(b / a) for a, b in itertools.pairwise(values)]
    return pstdev(ratios) / (sum(ratios) / len(ratios)) <= pstdev(steps) / (sum(steps) / len(steps))


def beyond(values: Sequence[Number], chosen: Number) -> Number | None:
    """The next value outside of sorted ones, where the chosen one is the smallest or largest; else None."""
    if chosen not in (values[0], values[-1]):
        return None
    edge, inner = (values[0], values[1]) if chosen == values[0] else (values[-1], values[-2])
    if geometric(values):
        return like(values, edge * (edge / inner)) or None  # of whole numbers nothing lies below 1
    return like(values, edge + (edge - inner))


def gaps(values: Sequence[Number], chosen: Number) -> Iterator[Number]:
    """The middles of the gaps on both sides of the chosen value, then those between them and the chosen value, and so on."""
    place, ratio = values.index(chosen), geometric(values)
    ends = [*values[max(0, place - 1) : place], *values[place + 1 : place + 2]]
    for _ in range(HALVINGS):
        ends = [like(values, math.sqrt(e * chosen) if ratio else (e + chosen) / 2) for e in ends]
        yield from ends


def like(values: Sequence[Number], value: float) -> Number:
    """A value with few digits; a whole number where the others are."""
    return round(value) if all(isinstance(v, int) for v in values) else rounded(value)


def edges(outcome: Outcome, made: Sequence[Outcome], allowed: Callable[[Trial], bool]) -> list[Trial]:
    """The chosen trial with a step beyond each edge at which it lies; without steps that are not allowed."""
    found = []
    for key, values in tried(made, outcome.trial.method).items():
        step = beyond(values, outcome.trial.values[key]) if key in outcome.trial.values else None
        if step is not None and step not in values:
            found.append(outcome.trial.but(key, step))
    return [trial for trial in found if allowed(trial)]


def between(outcome: Outcome, made: Sequence[Outcome], allowed: Callable[[Trial], bool]) -> list[Trial]:
    """The chosen trial with the middle of a gap beside one of its values, axis after axis."""
    axes = tried(made, outcome.trial.method).items()
    columns = [[(key, v) for v in gaps(values, outcome.trial.values[key]) if v not in values] for key, values in axes]
    turns = (pair for turn in itertools.zip_longest(*columns) for pair in turn if pair)
    return [trial for trial in (outcome.trial.but(*pair) for pair in dict.fromkeys(turns)) if allowed(trial)]


def widened(made: Sequence[Outcome], chosen: Mapping[str, Outcome], allowed: Callable[[Trial], bool]) -> list[Trial]:
    """The further trials of a round, equally many for each method that has a choice; [] where no choice lies at an edge."""
    beyond_edges = {m: edges(o, made, allowed) for m, o in chosen.items()}
    count = max(map(len, beyond_edges.values()), default=0)
    if not count:
        return []
    further = {m: [*beyond_edges[m], *between(o, made, allowed)] for m, o in chosen.items()}
    count = min(count, *map(len, further.values()))
    return [trial for own in further.values() for trial in own[:count]]
