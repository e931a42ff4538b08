"""Metrics of the accuracy matrix: what each is, what it is called, who defined it.

The matrix has T+1 rows and T columns: `matrix[t][i]` is the score on task i after training task t; row 0 is the
untrained model. A cell is a number or NOT_EVALUATED (left out by plan). A missing cell (None or NaN) raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

NOT_EVALUATED = "not_evaluated"
"""A cell that was left out by plan, such as a future task under `evaluate.tasks: seen`."""
MIXED = "of some tasks a higher score is better, of others a lower one"

Matrix = Sequence[Sequence[float | str]]


class Undefined(Exception):
    """Why a metric has no value here."""


class _Scores:
    """1-based access to a checked matrix; asking for a cell that was not evaluated raises Undefined. sign: 1, or -1 where a
    lower score is better."""

    def __init__(self, matrix: Matrix, sign: int = 1):
        self.sign = sign
        self.tasks = len(matrix) - 1
        if self.tasks < 1:
            raise ValueError(f"a matrix has a row before training and one per task, got {len(matrix)} rows")
        for t, row in enumerate(matrix):
            if len(row) != self.tasks:
                raise ValueError(f"row {t} has {len(row)} cells; expected {self.tasks}, one per task")
            for i, cell in enumerate(row):
                finite = isinstance(cell, (int, float)) and not isinstance(cell, bool) and math.isfinite(cell)
                if cell != NOT_EVALUATED and not finite:
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

    def forgotten(self, i: int, last: int) -> float:
        """How much worse task i is at the end than at its best after tasks up to `last`."""
        best = max(self.sign * self(t, i) for t in range(self.first(i), last + 1))
        return best - self.sign * self(self.tasks, i)

    def first(self, i: int) -> int:
        """The first row with a score of task i: 1, or i where future tasks were not evaluated. A task that was not yet
        learned and was left out by plan cannot have been forgotten."""
        try:
            self(1, i)
        except Undefined:
            return i
        return 1


def acc(r: _Scores) -> float:
    """Mean over i of R[T,i]."""
    return fmean(r(r.tasks, i) for i in range(1, r.tasks + 1))


def bwt(r: _Scores) -> float:
    """Mean over i < T of R[T,i] - R[i,i]."""
    return fmean(r(r.tasks, i) - r(i, i) for i in r.earlier())


def fwt(r: _Scores) -> float:
    """Mean over i > 1 of R[i-1,i] - R[0,i]."""
    return fmean(r(i, i + 1) - r(0, i + 1) for i in r.earlier())


def forgetting(r: _Scores) -> float:
    """Mean over i < T of the best of R[1..T-1,i] minus R[T,i]; of a score whose lower values are better, R[T,i] minus it."""
    return fmean(r.forgotten(i, r.tasks - 1) for i in r.earlier())


def learning_accuracy(r: _Scores) -> float:
    """Mean over i of R[i,i]."""
    return fmean(r(i, i) for i in range(1, r.tasks + 1))


def average_incremental_accuracy(r: _Scores) -> float:
    """Mean over t of the mean over i <= t of R[t,i]."""
    return fmean(fmean(r(t, i) for i in range(1, t + 1)) for t in range(1, r.tasks + 1))


def bwt_gem(r: _Scores) -> float:
    """BWT (T - 1) / T."""
    return bwt(r) * (r.tasks - 1) / r.tasks


def fwt_gem(r: _Scores) -> float:
    """FWT (T - 1) / T."""
    return fwt(r) * (r.tasks - 1) / r.tasks


def forgetting_mammoth(r: _Scores) -> float:
    """`forgetting` with R[T,i] among the scores of which the best is taken."""
    return fmean(r.forgotten(i, r.tasks) for i in r.earlier())


def forgetting_avalanche(r: _Scores) -> float:
    """Mean over i < T of R[i,i] minus R[T,i]; of a score whose lower values are better, R[T,i] minus R[i,i]."""
    return -r.sign * bwt(r)


@dataclass(frozen=True)
class Metric:
    """A number of a run: how it is computed, what it is called, what it says, who defined it.

    follows_scores: it is in the direction of the scores (more is better where a higher score is); the others are amounts
    of forgetting, of which less is better whatever the scores are. headline: shown wherever there is room for a few.
    formula: in TeX, with R_{t,i} for the score on task i after task t; of those that a paper's table shows.
    """

    key: str
    function: Callable[[_Scores], float]
    label: str
    definition: str
    source: str
    follows_scores: bool = True
    headline: bool = False
    formula: str = ""


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric("acc", acc, "ACC", "Mean score over all T tasks after the last one was learned.",
               "Lopez-Paz & Ranzato 2017; divided by T", headline=True,
               formula=r"\frac{1}{T}\sum_{i=1}^{T} R_{T,i}"),
        Metric("bwt", bwt, "BWT",
               "Backward transfer: score at the end minus score right after learning, mean over all tasks but the last. "
               "Below 0 is forgetting; above 0 where a lower score is better.",
               "Lopez-Paz & Ranzato 2017; divided by T - 1", headline=True,
               formula=r"\frac{1}{T-1}\sum_{i=1}^{T-1} (R_{T,i} - R_{i,i})"),
        Metric("forgetting", forgetting, "Forgetting",
               "Best score before the last task minus score at the end, mean over all tasks but the last.",
               "Chaudhry et al. 2018; divided by T - 1", follows_scores=False, headline=True,
               formula=r"\frac{1}{T-1}\sum_{i=1}^{T-1} (\max_{1 \le t < T} R_{t,i} - R_{T,i})"),
        Metric("learning_accuracy", learning_accuracy, "Learning acc.",
               "Mean score of each task right after it was learned.", "Riemer et al. 2019; divided by T", headline=True,
               formula=r"\frac{1}{T}\sum_{i=1}^{T} R_{i,i}"),
        Metric("fwt", fwt, "FWT",
               "Forward transfer: score just before a task is learned minus score of the untrained model, mean over all "
               "tasks but the first.", "Lopez-Paz & Ranzato 2017; divided by T - 1", headline=True,
               formula=r"\frac{1}{T-1}\sum_{i=2}^{T} (R_{i-1,i} - R_{0,i})"),
        Metric("average_incremental_accuracy", average_incremental_accuracy, "Avg. incremental",
               "After each task the mean score over the tasks seen so far; mean of these.", "divided by T"),
        Metric("bwt_gem", bwt_gem, "BWT / T", "BWT as the GEM repository computes it.", "divided by T"),
        Metric("fwt_gem", fwt_gem, "FWT / T", "FWT as the GEM repository computes it.", "divided by T"),
        Metric("forgetting_mammoth", forgetting_mammoth, "Forgetting, Mammoth",
               "Forgetting whose best score may be the final one, so never below 0.", "divided by T - 1",
               follows_scores=False),
        Metric("forgetting_avalanche", forgetting_avalanche, "Forgetting, Avalanche",
               "First score after learning minus the last: -BWT.", "divided by T - 1", follows_scores=False),
    )
}  # fmt: skip
HEADLINE = tuple(metric.key for metric in METRICS.values() if metric.headline)


def explain(matrix: Matrix, higher_is_better: Sequence[bool] = ()) -> tuple[dict[str, float | None], dict[str, str]]:
    """Every metric by its key, None where it is undefined (one task, or cells that were not evaluated), and for each that is
    None the reason.

    higher_is_better: of each task; without it of all. Where tasks differ in it no mean over them has a meaning. Raises
    ValueError for a missing cell or a wrong shape. The input is not modified.
    """
    directions = set(higher_is_better) or {True}
    scores = _Scores(matrix, 1 if directions == {True} else -1)
    values: dict[str, float | None] = dict.fromkeys(METRICS)
    if len(directions) > 1:
        return values, dict.fromkeys(METRICS, MIXED)
    reasons: dict[str, str] = {}
    for key, metric in METRICS.items():
        try:
            values[key] = metric.function(scores)
        except Undefined as why:
            reasons[key] = str(why)
    return values, reasons
