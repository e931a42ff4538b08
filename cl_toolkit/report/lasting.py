"""How long what was learned lasts, as a page says it: retention at fixed lags, and the fits that may be stated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cl_toolkit.report.columns import amount
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.estimate import Estimate, decimals
from cl_toolkit.report.fits import FEWEST, GOOD, NAMES, Fit, fits
from cl_toolkit.report.forgetting import LAGS, curve, retention


@dataclass(frozen=True)
class Lasting:
    """Two tables of a page: a row per method with its retention at `lags`, a row per curve with its fit, and in a sentence
    which curves have none."""

    lags: Sequence[int]
    retention: Sequence[Sequence[str]]
    fits: Sequence[Sequence[str]]
    without: str


def lasting(comparison: Comparison) -> Lasting | None:
    """What there is to say; None where no run has a curve."""
    methods = comparison.methods
    tasks = list(dict.fromkeys(task for run in comparison.runs for task in run["tasks"]))
    drawn = [(m, task) for m, runs in methods.items() for task in tasks if curve(runs, task)]
    if not drawn:
        return None
    left = {m: [retention(runs, lag) for lag in LAGS] for m, runs in methods.items()}
    shown = [i for i in range(len(LAGS)) if any(of[i][0] for of in left.values())]
    rows = [[m, *(_retention(*of[i]) for i in shown)] for m, of in left.items() if any(e for e, _ in of)]
    found = fits(methods, tasks)
    lines = [_line(*key, found[key]) for key in drawn if key in found]
    missing = len(drawn) - len(lines)
    many = f"{missing} of {len(drawn)} curves have" if missing > 1 else f"One of {len(drawn)} curves has"
    why = f"fewer than {FEWEST} points, no fall, R² below {GOOD}, or a half-life far beyond what was measured"
    return Lasting([LAGS[i] for i in shown], rows, lines, f"{many} no fit: {why}." if missing else "")


def _retention(estimate: Estimate | None, tasks: int) -> str:
    """`0.61 (0.52 to 0.70, n=3), 2 tasks`."""
    if estimate is None:
        return "-"
    interval = f" ({decimals(estimate.low)} to {decimals(estimate.high)}, n={estimate.n})" if estimate.n > 1 else ""
    return f"{decimals(estimate.mean)}{interval}, {tasks} task{'s' if tasks > 1 else ''}"


def _line(method: str, task: str, fit: Fit) -> list[str]:
    """Method, task, form, half-life with its interval, floor, R², what it is over."""
    form = f"{fit.form}, {NAMES[fit.form]} = {amount(fit.rate)}"
    if not fit.decided:
        form += "; the other form fits as well"
    return [
        method,
        task,
        form,
        half_life(fit),
        decimals(fit.c),
        f"{fit.r2:.2f}",
        f"{fit.n} {fit.unit}" if fit.n > 1 else "1",
    ]


def half_life(fit: Fit) -> str:
    """`42 (30 to 60)`; `> 300` where it lies beyond the last lag."""
    if fit.half_life > fit.last:
        return f"> {amount(fit.last)}"
    if math.isnan(fit.low):
        return amount(fit.half_life)
    interval = f"{amount(fit.low)} to " + (amount(fit.high) if fit.high < 1e6 else "∞")
    return f"{amount(fit.half_life)} ({interval}{', by its points' if fit.by_points else ''})"
