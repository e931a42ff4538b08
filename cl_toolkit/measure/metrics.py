"""Pure functions of the accuracy matrix. Definitions: Lopez-Paz & Ranzato 2017, Chaudhry 2018, Riemer 2019.

The matrix has T+1 rows and T columns: `matrix[t][i]` is the score on task i after training task t; row 0 is the
untrained model. A cell is a number or NOT_EVALUATED (left out by plan). A missing cell (None or NaN) raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

NOT_EVALUATED = "not_evaluated"
"""A cell that was left out by plan, such as a future task under `evaluate.tasks: seen`."""

Matrix = Sequence[Sequence[float | str]]


class Undefined(Exception):
    """Why a metric has no value here."""


class _Scores:
    """1-based access to a checked matrix; asking for a cell that was not evaluated raises Undefined."""

    def __init__(self, matrix: Matrix):
        self.tasks = len(matrix) - 1
        if self.tasks < 1:
            raise ValueError(f"a matrix has a row before training and one per task, got {len(matrix)} rows")
        for t, row in enumerate(matrix):
            if len(row) != self.tasks:
                raise ValueError(f"row {t} has {len(row)} cells; expected {self.tasks}, one per task")
            for i, cell in enumerate(row):
                number = isinstance(cell, (int, float)) and not isinstance(cell, bool)
                if cell != NOT_EVALUATED and not (number and math.isfinite(cell)):
                    raise ValueError(f"the cell of row {t}, task {i + 1} is missing: {cell!r}")
        self._matrix = matrix

    def __call__(self, t: int, i: int) -> float:
        cell = self._matrix[t][i - 1]
        if cell == NOT_EVALUATED:
            raise Undefined(
                f"task {i} was not evaluated after task {t}" if t else f"task {i} was not evaluated before training"
            )
        return float(cell)

    def earlier(self) -> range:
        """Tasks that something was learned after."""
        if self.tasks == 1:
            raise Undefined("needs two tasks")
        return range(1, self.tasks)


def acc(r: _Scores) -> float:
    """Mean over all tasks after the last one."""
    return fmean(r(r.tasks, i) for i in range(1, r.tasks + 1))


def bwt(r: _Scores) -> float:
    """Backward transfer: mean over i < T of R[T,i] - R[i,i]; negative is forgetting (Lopez-Paz & Ranzato 2017)."""
    return fmean(r(r.tasks, i) - r(i, i) for i in r.earlier())


def fwt(r: _Scores) -> float:
    """Forward transfer: mean over i > 1 of R[i-1,i] - R[0,i] (Lopez-Paz & Ranzato 2017)."""
    return fmean(r(i, i + 1) - r(0, i + 1) for i in r.earlier())


def forgetting(r: _Scores) -> float:
    """Mean over i < T of the best score after tasks 1..T-1 minus the last one (Chaudhry 2018)."""
    return fmean(max(r(t, i) for t in range(_first(r, i), r.tasks)) - r(r.tasks, i) for i in r.earlier())


def _first(r: _Scores, i: int) -> int:
    """The first row with a score of task i: 1, or i where future tasks were not evaluated. A task that was not yet
    learned and was left out by plan cannot have been forgotten."""
    try:
        r(1, i)
    except Undefined:
        return i
    return 1


def learning_accuracy(r: _Scores) -> float:
    """Mean of R[i,i]: how well each task was learned at its own end (Riemer 2019)."""
    return fmean(r(i, i) for i in range(1, r.tasks + 1))


def average_incremental_accuracy(r: _Scores) -> float:
    """Mean over t of the mean over tasks seen so far."""
    return fmean(fmean(r(t, i) for i in range(1, t + 1)) for t in range(1, r.tasks + 1))


def bwt_gem(r: _Scores) -> float:
    """BWT divided by T, as in the GEM repository's `metrics.py`."""
    return bwt(r) * (r.tasks - 1) / r.tasks


def fwt_gem(r: _Scores) -> float:
    """FWT divided by T, as in the GEM repository's `metrics.py`."""
    return fwt(r) * (r.tasks - 1) / r.tasks


def forgetting_mammoth(r: _Scores) -> float:
    """The best score after tasks 1..T, the last included, minus the last: never negative (Mammoth)."""
    return fmean(max(r(t, i) for t in range(_first(r, i), r.tasks + 1)) - r(r.tasks, i) for i in r.earlier())


def forgetting_avalanche(r: _Scores) -> float:
    """The first score after learning minus the last, mean over i < T: equals -BWT (Avalanche's `Forgetting`)."""
    return -bwt(r)


METRICS: dict[str, Callable[[_Scores], float]] = {
    f.__name__: f
    for f in (
        acc,
        bwt,
        fwt,
        forgetting,
        learning_accuracy,
        average_incremental_accuracy,
        bwt_gem,
        fwt_gem,
        forgetting_mammoth,
        forgetting_avalanche,
    )
}


def summary(matrix: Matrix) -> dict[str, float | None]:
    """Every metric by name; None where it is undefined (one task, or cells that were not evaluated).

    Raises ValueError for a missing cell or a wrong shape. The input is not modified.
    """
    return explain(matrix)[0]


def explain(matrix: Matrix) -> tuple[dict[str, float | None], dict[str, str]]:
    """`summary`, and for each metric that is None the reason."""
    scores = _Scores(matrix)
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name, metric in METRICS.items():
        try:
            values[name] = metric(scores)
        except Undefined as why:
            values[name], reasons[name] = None, str(why)
    return values, reasons


def intransigence(matrix: Matrix, joint: Sequence[float]) -> float:
    """I_T = a*_T - R[T,T]: how much worse the last task was learned than by a model trained jointly (Chaudhry 2018).

    joint: the joint model's score per task, length T.
    """
    scores = _Scores(matrix)
    return joint[-1] - scores(scores.tasks, scores.tasks)
