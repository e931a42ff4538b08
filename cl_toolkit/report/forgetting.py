"""Forgetting curves as numbers: how well a task is still done since it was learned, and what is left of it at fixed lags."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cl_toolkit.report.estimate import Estimate, over_orders
from cl_toolkit.report.reading import Record, guessing

AXES = {
    "steps": ("step", "optimizer steps"),
    "examples": ("examples_seen", "examples trained on"),
    "tokens": ("tokens_seen", "tokens trained on"),
}
"""What can be counted since a task was learned -> (where a point has it, what it is called)."""
LAGS = (10, 100, 1000)
"""Steps after which retention is given."""


@dataclass(frozen=True)
class Curve:
    """A task's score, or loss, since it was learned, of one method.

    lags: (L,) optimizer steps since its end, 0 first. values: (U, L), a row per unit. unit: `seeds` of one order, or `orders`,
    each the mean over its seeds. floor: the score of pure guessing at the last lag, 0 where it is not known.
    times: axis -> (L,) what was counted since then, mean over runs; NaN where the runs have not recorded it.
    """

    lags: np.ndarray
    values: np.ndarray
    unit: str
    floor: float
    times: Mapping[str, np.ndarray]


def points(record: Record, task: str) -> dict[int, Mapping[str, Any]]:
    """Lag -> point of a task's curve, its own end first; empty where it has none."""
    found = (record.get("probes") or {}).get("curves", ())
    own = {p["lag"]: p for p in found if p["scored"] == task and p.get("lag") is not None and p["lag"] >= 0}
    return dict(sorted(own.items()))


def curve(runs: Sequence[Record], task: str, of: str = "value") -> Curve | None:
    """The curve of a method's runs, at the lags that all of them have that learned something after the task; None where
    there is no such run. of: what of a point, its `value` or its `loss`; those without it do not count."""
    known = [(run, found) for run in runs if len(found := points(run, task)) > 1]
    known = [(run, found) for run, found in known if all(of in point for point in found.values())]
    if not known:
        return None
    lags = sorted(set.intersection(*(set(found) for _, found in known)))
    by_order: dict[str, list[list[float]]] = {}
    for run, found in known:
        by_order.setdefault(str(run.get("order")), []).append([found[lag][of] for lag in lags])
    several = len(by_order) > 1
    rows = [np.mean(v, axis=0) for v in by_order.values()] if several else next(iter(by_order.values()))
    floors = [_guess(run, task, found[lags[-1]]) for run, found in known]
    times = {axis: np.mean([_since(found, lags, key) for _, found in known], axis=0) for axis, (key, _) in AXES.items()}
    floor = float(np.nan_to_num(np.mean(floors)))
    return Curve(np.array(lags), np.array(rows, dtype=float), "orders" if several else "seeds", floor, times)


def less_is_better(record: Record, task: str) -> bool:
    """Whether a task's score is better when it is lower."""
    known = dict(zip(record.get("tasks") or (), record.get("higher_is_better") or (), strict=False))
    return known.get(task) is False


def _since(found: Mapping[int, Mapping[str, Any]], lags: Sequence[int], key: str) -> list[float]:
    """What was counted between the first point and each of these."""
    counts = [found[lag].get(key) for lag in lags]
    return [math.nan if c is None or counts[0] is None else float(c - counts[0]) for c in counts]


def _guess(record: Record, task: str, point: Mapping[str, Any]) -> float:
    """The score of pure guessing when a point was taken, NaN where it is not known."""
    names = list(record["tasks"])
    if point["trained"] not in names or task not in names:
        return math.nan
    return float(guessing(record)[names.index(point["trained"]) + 1, names.index(task)])


# what is left at fixed lags ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Retained:
    """What a run still does of a task so many steps after it was learned. score: read off between two measured points where
    none was taken just then. share: of what it did better than guessing at first; NaN where that was nothing or guessing is
    not known. between: whether it was read off."""

    task: str
    lag: int
    score: float
    share: float
    between: bool


def retained(record: Record, lags: Sequence[int] = LAGS) -> Iterator[Retained]:
    """Of every task at the lags that lie within its curve. share = (s(t) - g(t)) / (s(0) - g(0)) with the score s and that of
    guessing g, 1 minus the forget ratio of Zhang et al. 2024 (arXiv 2409.02228); of scores of which less is better there is
    none. Between two points the score is linear in log(1 + lag) (ours)."""
    for task in record.get("tasks") or ():
        found = points(record, task)
        if len(found) < 2 or 0 not in found:
            continue
        known = np.array(list(found))
        values = np.array([p["value"] for p in found.values()], dtype=float)
        above = values - np.array([_guess(record, task, p) for p in found.values()])
        for lag in lags:
            if lag > known[-1]:
                continue
            score, left = (float(np.interp(np.log1p(lag), np.log1p(known), v)) for v in (values, above))
            share = math.nan if less_is_better(record, task) or not above[0] > 0 else left / above[0]
            yield Retained(task, lag, score, share, lag not in found)


def retention(runs: Sequence[Record], lag: int) -> tuple[Estimate | None, int]:
    """(the share that is left after so many steps, mean over the tasks of a run that have it, over orders or seeds; how many
    tasks at most)."""
    found = [
        (str(run.get("order")), [r.share for r in retained(run, (lag,)) if not math.isnan(r.share)]) for run in runs
    ]
    kept = [(order, float(np.mean(shares)), 0.0) for order, shares in found if shares]
    return over_orders(kept) if kept else None, max((len(shares) for _, shares in found), default=0)
