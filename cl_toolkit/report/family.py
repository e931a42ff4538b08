"""All comparisons that a page makes, and which of them may be called a difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cl_toolkit.report.estimate import LEVEL, Estimate, holm, mean, paired, probability, single
from cl_toolkit.report.likeness import barrier, check_unmixed
from cl_toolkit.report.records import Record, by_method, control_of, is_control, is_method, lookup, lower_is_better

ACC, BWT, LEARNING = "metrics.acc", "metrics.bwt", "metrics.learning_accuracy"
Key = tuple[str, str, str]
"""(method, what it is compared with, metric); a method alone is compared with "", that is with 0."""


@dataclass(frozen=True)
class Comparison:
    """A difference (None without a common order and seed), its p after correction for all comparisons of the page (NaN
    where no verdict can be given), and why the two must not be compared ("" if they may)."""

    estimate: Estimate | None
    corrected: float = math.nan
    barrier: str = ""

    @property
    def clear(self) -> bool:
        """Whether it may be called a difference."""
        return self.corrected <= LEVEL

    def __str__(self) -> str:
        """`+0.41 (95% interval +0.35 to +0.47, n=3 seeds; p = 0.002, corrected 0.014)`."""
        if math.isnan(self.corrected):
            return str(self.estimate)
        corrected = probability(self.corrected).removeprefix("p ").removeprefix("= ")
        return f"{str(self.estimate)[:-1]}; {probability(self.estimate.p)}, corrected {corrected})"


@dataclass(frozen=True)
class Family:
    """What a page compares: each method with its control, and each with the one that ends best. Its claims are corrected
    together by Holm's method. That alone would keep false pages at 5 of 100; that the best is picked from the same runs
    adds a little: 4 to 7 of 100 in simulated reports of 15 methods (`make null`).

    controls: method -> (control or None, what about it is not as it should be). best: of the methods that learn one task
    after the other, the one with the best mean final score; None without one.
    """

    groups: Mapping[str, Sequence[Record]]
    controls: Mapping[str, tuple[str | None, str]]
    best: str | None
    comparisons: Mapping[Key, Comparison]

    @property
    def size(self) -> int:
        """How many comparisons the correction is for."""
        return len({id(c) for c in self.comparisons.values() if not math.isnan(c.corrected)})

    def against_control(self, method: str, metric: str) -> Comparison:
        """A method minus its control."""
        return self.comparisons[method, self.controls[method][0] or "", metric]

    def against_best(self, method: str) -> Comparison:
        """The final score of the best minus a method's."""
        return self.comparisons[self.best, method, ACC]


def family(records: Sequence[Record]) -> Family:
    """Every comparison of these records' page. Raises UserError where runs of one method differ in more than seed and order."""
    check_unmixed(records)
    groups = by_method(records)
    controls = {method: control_of(method, groups) for method in groups}
    wanted: list[Key] = []
    for method, runs in groups.items():
        if is_control(runs[0]):
            wanted.append((method, "", BWT))
        elif controls[method][0]:
            metrics = lookup(runs[0], "regime.compared") or ()
            wanted += [(method, controls[method][0], f"metrics.{metric}") for metric in metrics]
    best = best_of(groups, lower_is_better(records))
    rivals = [m for m in one_after_the_other(groups) if m != best]
    wanted += [(best, m, ACC) for m in rivals if (m, best, ACC) not in wanted and (best, m, ACC) not in wanted]
    found = {key: _compare(groups, key) for key in wanted}
    ready = {k: c.estimate.p for k, c in found.items() if c.estimate and c.estimate.enough and not c.barrier}
    corrected = holm(ready)
    made = {k: Comparison(c.estimate, corrected.get(k, math.nan), c.barrier) for k, c in found.items()}
    for m in rivals:  # the same pair of methods seen from the other side is not compared twice
        made.setdefault((best, m, ACC), made.get((m, best, ACC)))
    return Family(groups, controls, best, made)


def one_after_the_other(groups: Mapping[str, Sequence[Record]]) -> list[str]:
    """The methods that learn one task after the other and have a final score."""
    return [m for m, runs in groups.items() if is_method(runs[0]) and not math.isnan(mean(runs, ACC))]


def best_of(groups: Mapping[str, Sequence[Record]], lower: bool) -> str | None:
    """The method with the best mean final score; of equals the first."""
    found = one_after_the_other(groups)
    return (min if lower else max)(found, key=lambda m: mean(groups[m], ACC)) if found else None


def _compare(groups: Mapping[str, Sequence[Record]], key: Key) -> Comparison:
    method, other, metric = key
    if not other:
        return Comparison(single(groups[method], metric))
    return Comparison(paired(groups[method], groups[other], metric), barrier=barrier(groups[method], groups[other]))
