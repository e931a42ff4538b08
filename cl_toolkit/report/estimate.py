"""How large a mean difference is, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cl_toolkit.report.records import Record, number


@dataclass(frozen=True)
class Estimate:
    """A mean over n runs with its 95% t interval; low and high are NaN for n = 1."""

    mean: float
    low: float
    high: float
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> Estimate | None:
        """The estimate from the values that are not NaN; None without any."""
        values = np.array([v for v in values if not math.isnan(v)])
        n = len(values)
        if not n:
            return None
        mean = float(values.mean())
        half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        return Estimate(mean, mean - half, mean + half, n)

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0. One run never does."""
        return self.n > 1 and (self.low > 0 or self.high < 0)

    @property
    def interval(self) -> str:
        """`+0.35 to +0.47`."""
        return f"{signed(self.low)} to {signed(self.high)}"

    def __str__(self) -> str:
        return signed(self.mean) + (f" (95% interval {self.interval}, n={self.n})" if self.n > 1 else "")


def paired(runs: Sequence[Record], control: Sequence[Record], path: str) -> Estimate | None:
    """Run minus control over the pairs with the same task order and seed; None without such a pair."""
    base = {(str(r.get("order")), str(r.get("seed"))): number(r, path) for r in control}
    keys = [(str(r.get("order")), str(r.get("seed"))) for r in runs]
    return Estimate.of([number(r, path) - base[key] for r, key in zip(runs, keys, strict=True) if key in base])


def mean(runs: Sequence[Record], path: str) -> float:
    """Mean over the runs that have the number, NaN when none has."""
    estimate = Estimate.of([number(r, path) for r in runs])
    return estimate.mean if estimate else math.nan


def decimals(value: float) -> str:
    """Two decimals, or one significant digit where these would hide that the value is not 0."""
    if abs(value) < 1e-9:
        return "0.00"
    return f"{value:.2f}" if abs(value) >= 0.005 else f"{value:.1g}"


def signed(value: float) -> str:
    """`+0.41`, `-0.20`, `0.00`."""
    text = decimals(value)
    return text if text.startswith("-") or text == "0.00" else f"+{text}"
