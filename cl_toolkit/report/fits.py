"""How a forgetting curve falls: a power law or an exponential, its half-life, and whether either may be stated at all.

Both are s(t) = c + a f(t), t in optimizer steps since the task was learned: f = (1 + t)^-b (Wickelgren 1974 with unit scale;
Wixted & Ebbesen 1991 compare the forms) and f = exp(-t / tau). The floor c is free, not below the score of pure guessing. The
half-life is when half of a is gone: 2^(1/b) - 1, or tau ln 2. What is stated is what the data decide; the rest is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import stdtrit

from cl_toolkit.report.estimate import NOTHING
from cl_toolkit.report.forgetting import Curve, curve, less_is_better
from cl_toolkit.report.methods import Methods

GOOD = 0.9
"""R^2 from which a fit is stated. Of 2,000 curves of 8 points that were noise alone none reached it; a curve that stays level
before it falls, which neither form describes, came to 0.88 (LOG.md)."""
FEWEST = 8
"""Points that a fit needs, its own end among them."""
APART = 2.0
"""Difference in AICc from which one form is better than the other (Burnham & Anderson 2002)."""
BEYOND = 10.0
"""Half-lives up to so many times the last lag are looked for; one at that edge is not determined."""
PARAMETERS = 4
"""a, half-life, c, and the variance of what is left."""
NAMES = {"power law": "b", "exponential": "tau"}


@dataclass(frozen=True)
class Fit:
    """A curve that is described by one of the two forms.

    rate: b of the power law, tau (steps) of the exponential. half_life: in steps, with its 95% interval `low` to `high` (NaN
    where there is none). r2: share of the variance over the points. worse: by how much the other form's AICc is larger; inf
    where that has no fit. n, unit: what the mean curve is over. points: how many lags, the last of which is `last`.

    The interval is of log half-life. Of several units: the delete-one jackknife with Student's t, which for a mean is the
    report's other intervals. Of one: from the least-squares covariance (`by_points`), which takes points of one model for
    independent and so is too narrow.
    """

    form: str
    a: float
    c: float
    rate: float
    half_life: float
    r2: float
    worse: float
    n: int
    unit: str
    points: int
    last: float
    low: float = math.nan
    high: float = math.nan

    @property
    def by_points(self) -> bool:
        """Whether the interval is of one curve's points and not of several units."""
        return self.n == 1

    @property
    def decided(self) -> bool:
        """Whether the data tell the two forms apart."""
        return self.worse >= APART

    def __call__(self, lags: Any) -> np.ndarray:
        """The curve at lags in steps."""
        return self.c + self.a * FORMS[self.form](np.asarray(lags, dtype=float), self.half_life)


def power(t: np.ndarray, half: float) -> np.ndarray:
    """(1 + t)^-b, b by its half-life."""
    return np.exp2(-np.log1p(t) / np.log1p(half))


def exponential(t: np.ndarray, half: float) -> np.ndarray:
    """exp(-t / tau), tau by its half-life."""
    return np.exp2(-t / half)


FORMS: Mapping[str, Callable[[np.ndarray, float], np.ndarray]] = {"power law": power, "exponential": exponential}


def fitted(found: Curve | None, lower: bool = False) -> Fit | None:
    """The better form with its interval; None where the points are few, the score does not fall, R^2 is below `GOOD`, or the
    half-life lies beyond what was measured by far. lower: of the score less is better."""
    if found is None or len(found.lags) < FEWEST:
        return None
    t, floor = found.lags.astype(float), -math.inf if lower else found.floor
    made = [fit for form in FORMS if (fit := _least(form, t, found.values.mean(axis=0), floor, lower))]
    if not made:
        return None
    best, *others = sorted(made, key=lambda fit: -fit.r2)
    if best.r2 < GOOD:
        return None
    worse = _aicc(others[0].r2, len(t)) - _aicc(best.r2, len(t)) if others else math.inf
    n = len(found.values)
    best = replace(best, worse=worse, n=n, unit=found.unit)
    low, high = _over_units(best, t, found.values, floor, lower) if n > 1 else _over_points(best, t, found.values[0])
    return replace(best, low=low, high=high)


def _aicc(r2: float, points: int) -> float:
    """AICc up to what two fits to the same points share."""
    k = PARAMETERS
    return points * math.log(max(1 - r2, NOTHING)) + 2 * k * (k + 1) / (points - k - 1)


def _least(form: str, t: np.ndarray, y: np.ndarray, floor: float, lower: bool) -> Fit | None:
    """The least-squares fit of one form: for each half-life a and c are those of a line, so one number is searched for."""
    total = float(((y - y.mean()) ** 2).sum())
    if total < NOTHING:
        return None
    shape, floor = FORMS[form], min(floor, float(y.min()))

    def error(log_half: float) -> float:
        f = shape(t, math.exp(log_half))
        a, c = _line(f, y, floor)
        return float(((y - c - a * f) ** 2).sum())

    low, high = math.log(t[1] / BEYOND), math.log(t[-1] * BEYOND)
    grid = np.linspace(low, high, 60)
    at = int(np.argmin([error(h) for h in grid]))
    if at in (0, len(grid) - 1):
        return None
    result = minimize_scalar(error, bounds=(grid[at - 1], grid[at + 1]), method="bounded", options={"xatol": 1e-12})
    half = math.exp(result.x)
    a, c = _line(shape(t, half), y, floor)
    if a <= 0 if not lower else a >= 0:
        return None
    rate = math.log(2) / math.log1p(half) if form == "power law" else half / math.log(2)
    r2 = 1 - float(result.fun) / total
    return Fit(form, a, c, rate, half, r2, math.inf, 1, "seeds", len(t), float(t[-1]))


def _line(f: np.ndarray, y: np.ndarray, floor: float) -> tuple[float, float]:
    """a and c of least squares, c at least the floor."""
    centred = f - f.mean()
    a = float(centred @ y / (centred @ centred))
    c = float(y.mean() - a * f.mean())
    return (a, c) if c >= floor else (float(f @ (y - floor) / (f @ f)), floor)


def _over_units(fit: Fit, t: np.ndarray, values: np.ndarray, floor: float, lower: bool) -> tuple[float, float]:
    """The jackknife's interval; none where a fit without one of the units finds no half-life."""
    n = len(values)
    without = [_least(fit.form, t, np.delete(values, i, axis=0).mean(axis=0), floor, lower) for i in range(n)]
    logs = np.array([math.nan if w is None else math.log(w.half_life) for w in without])
    error = math.sqrt((n - 1) * float(((logs - logs.mean()) ** 2).mean()))
    return _around(fit.half_life, error, n - 1)


def _over_points(fit: Fit, t: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The interval from the covariance of the least squares, as scipy's curve_fit has it."""
    f, step = FORMS[fit.form](t, fit.half_life), 1e-5
    sides = [FORMS[fit.form](t, fit.half_life * math.exp(sign * step)) for sign in (1, -1)]
    slopes = np.stack([f, fit.a * (sides[0] - sides[1]) / (2 * step), np.ones_like(f)], axis=1)
    variance = float(((y - fit(t)) ** 2).sum()) / (len(t) - 3)
    return _around(fit.half_life, math.sqrt(variance * np.linalg.inv(slopes.T @ slopes)[1, 1]), len(t) - 3)


def _around(half: float, error: float, freedom: int) -> tuple[float, float]:
    """The interval of a half-life whose logarithm has this standard error."""
    reach = float(stdtrit(freedom, 0.975)) * error
    return (half * math.exp(-reach), half * math.exp(reach)) if reach < 50 else (0.0, math.inf)


def fits(methods: Methods, tasks: Sequence[str]) -> dict[tuple[str, str], Fit]:
    """(method, task) -> what its curve is described by, of those that may be."""
    made = {
        (m, task): fitted(curve(runs, task), less_is_better(runs[0], task))
        for m, runs in methods.items()
        for task in tasks
    }
    return {key: fit for key, fit in made.items() if fit}
