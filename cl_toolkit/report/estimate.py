"""How large a mean difference is, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from cl_toolkit.report.reading import Record, number
from cl_toolkit.report.sampling import sampling_variance

Name = TypeVar("Name")
LEVEL = 0.05
"""Two-sided; of all claims of a page together, see `family`."""
ENOUGH = 3
"""Units (orders, or seeds where there is one order) that a verdict needs (ours). Two keep the level if their noise is normal
(t with one degree of freedom), but rest on that shape alone and find hardly anything: in simulated reports of two orders x
five seeds a difference of six spreads in 15 of 100. So two orders give no verdict, however many seeds each has."""

NOTHING = 1e-12
"""Errors below it are those of the last bit, not of anything measured."""


@dataclass(frozen=True)
class Estimate:
    """A mean over n units with its 95% t interval and two-sided p; for n = 1 these are NaN.

    unit: what was counted: `seeds` (of one task order), `orders` (each the mean over its seeds), or `runs`.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float = math.nan
    unit: str = "runs"

    @staticmethod
    def of(values: Sequence[float], variances: Sequence[float] = (), unit: str = "runs") -> Estimate | None:
        """The estimate from the values that are not NaN; None without any.

        variances: of each value, what test sets leave open (`sampling_variance`). A claim has to pass both sources of
        error (ours): p is the larger of that of the t test over the units' spread and that of the normal test over the
        test sets' error, and the interval the wider one, so that units which happen to agree more closely than test sets
        of this size can tell are not taken at their word. Without any error p is 1.
        """
        kept = [i for i, v in enumerate(values) if not math.isnan(v)]
        if not kept:
            return None
        numbers, n = np.array([values[i] for i in kept]), len(kept)
        average = float(numbers.mean())
        if n == 1:
            return Estimate(average, math.nan, math.nan, 1, math.nan, unit)
        spread = float(numbers.std(ddof=1)) / math.sqrt(n)
        floor = math.sqrt(sum(variances[i] for i in kept)) / n if len(variances) else 0.0
        half = max(float(stdtrit(n - 1, 0.975)) * spread, float(ndtri(0.975)) * floor)
        p = 1.0
        if max(spread, floor) > NOTHING:
            by_spread = 2 * float(stdtr(n - 1, -abs(average) / spread)) if spread > NOTHING else 0.0
            p = max(by_spread, 2 * float(ndtr(-abs(average) / floor)) if floor > NOTHING else 0.0)
        return Estimate(average, average - half, average + half, n, p, unit)

    @property
    def enough(self) -> bool:
        """Whether there are units enough for a verdict."""
        return self.n >= ENOUGH

    @property
    def interval(self) -> str:
        """`+0.35 to +0.47`."""
        return f"{signed(self.low)} to {signed(self.high)}"

    def __str__(self) -> str:
        return signed(self.mean) + (f" (95% interval {self.interval}, n={self.n} {self.unit})" if self.n > 1 else "")


def pairs(runs: Sequence[Record], control: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Run and control with the same task order and seed."""
    base = {(str(r.get("order")), str(r.get("seed"))): r for r in control}
    keys = [(str(r.get("order")), str(r.get("seed"))) for r in runs]
    return [(r, base[key]) for r, key in zip(runs, keys, strict=True) if key in base]


def paired(runs: Sequence[Record], control: Sequence[Record], path: str) -> Estimate | None:
    """Run minus control over the pairs with the same task order and seed; None without such a pair.

    Orders are the outer unit: runs of one order share what a method does to that order, so their mean is one value, and n
    counts orders. With one order n counts seeds, and the estimate is of that order only.

    The sampling error of a difference is taken as the sum of both runs', divided by the runs behind a unit (ours). Two
    things are left out that pull apart: both methods answer the same questions, which makes the error of the difference
    smaller, and so does every seed, which makes it shrink more slowly with more runs. They cancel where the two
    correlations are alike and runs are few.
    """
    values = [
        (str(r.get("order")), number(r, path) - number(c, path),
         sampling_variance(r, path) + sampling_variance(c, path))
        for r, c in pairs(runs, control)
    ]  # fmt: skip
    return over_orders(values)


def single(runs: Sequence[Record], path: str) -> Estimate | None:
    """A method's own number, over the same units as `paired`."""
    return over_orders([(str(r.get("order")), number(r, path), sampling_variance(r, path)) for r in runs])


def over_orders(values: Sequence[tuple[str, float, float]]) -> Estimate | None:
    """The estimate from (order, value, its sampling variance) of runs: over order means, over runs if of one order."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for order, value, variance in values:
        if not math.isnan(value):
            groups.setdefault(order, []).append((value, variance))
    if len(groups) == 1:
        (only,) = groups.values()
        return Estimate.of([v for v, _ in only], [s for _, s in only], "seeds")
    means = [float(np.mean([v for v, _ in group])) for group in groups.values()]
    return Estimate.of(means, [sum(s for _, s in group) / len(group) ** 2 for group in groups.values()], "orders")


def holm(p: Mapping[Name, float]) -> dict[Name, float]:
    """p-values corrected for their number, so that the chance of any false claim is at most the level (Holm 1979)."""
    corrected: dict[Name, float] = {}
    largest = 0.0
    for rank, key in enumerate(sorted(p, key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[key]))
        corrected[key] = largest
    return corrected


def mean(runs: Sequence[Record], path: str) -> float:
    """Mean over the runs that have the number, NaN when none has."""
    values = [v for r in runs if not math.isnan(v := number(r, path))]
    return float(np.mean(values)) if values else math.nan


def decimals(value: float) -> str:
    """Two decimals, or one significant digit where these would hide that the value is not 0."""
    if abs(value) < 1e-9:
        return "0.00"
    return f"{value:.2f}" if abs(value) >= 0.005 else f"{value:.1g}"


def signed(value: float) -> str:
    """`+0.41`, `-0.20`, `0.00`."""
    text = decimals(value)
    return text if text.startswith("-") or text == "0.00" else f"+{text}"


def probability(p: float) -> str:
    """`p = 0.021`, `p < 0.0001`."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"
