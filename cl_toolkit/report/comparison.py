"""A report's runs, read once: methods, controls, rankings, and every difference that may be claimed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from cl_toolkit.report.columns import ranking
from cl_toolkit.report.estimate import LEVEL, Estimate, holm, mean, paired, probability, single
from cl_toolkit.report.likeness import barrier, check_unmixed
from cl_toolkit.report.methods import Methods, by_method, control_names, control_of, in_order
from cl_toolkit.report.reading import Record, is_method, lower_is_better, trusted, unit

ACC, BWT, LEARNING = "metrics.acc", "metrics.bwt", "metrics.learning_accuracy"
Key = tuple[str, str, str]
"""(method, what it is compared with, metric); a method alone is compared with "", that is with 0."""


@dataclass(frozen=True)
class Difference:
    """Between two methods, or a method and 0 (None without a common order and seed), its p after correction for all of the
    page (NaN where no verdict can be given), and why the two must not be compared ("" if they may)."""

    estimate: Estimate | None
    corrected: float = math.nan
    barrier: str = ""

    @property
    def clear(self) -> bool:
        """Whether it may be claimed."""
        return self.corrected <= LEVEL

    def __str__(self) -> str:
        """`+0.41 (95% interval +0.35 to +0.47, n=3 seeds; p = 0.002, corrected 0.014)`."""
        if self.estimate is None or math.isnan(self.corrected):
            return str(self.estimate)
        corrected = probability(self.corrected).removeprefix("p ").removeprefix("= ")
        return f"{str(self.estimate)[:-1]}; {probability(self.estimate.p)}, corrected {corrected})"


@dataclass(frozen=True)
class Comparison:
    """The runs of a report, and what a page says of them: each method beside its control, and beside the one that ends
    best. Its claims are corrected together by Holm's method. That alone would keep false pages at 5 of 100; that the best
    is picked from the same runs adds a little: 4 to 7 of 100 in simulated reports of 15 methods (`make null`).

    records: all runs, those that failed too. methods: name -> finished runs; all in the order of `methods.in_order`.
    controls: method -> (control or None, what about it is not as it should be); a control has no entry.
    unit: what the scores are called. lower: less of them is better.
    best: of the methods that learn one task after the other, the one with the best mean final score; None without one.
    """

    records: Sequence[Record]
    methods: Methods
    controls: Mapping[str, tuple[str | None, str]]
    unit: str
    lower: bool
    best: str | None
    differences: Mapping[Key, Difference]

    @staticmethod
    def of(records: Sequence[Record]) -> Comparison:
        """Raises UserError for a damaged record, one of another schema, and where runs of one method differ in more than
        seed and order."""
        records = in_order([trusted(record) for record in records])
        methods = by_method(records)
        check_unmixed(methods)
        finished = [run for runs in methods.values() for run in runs]
        names = control_names(finished)
        controls = {method: control_of(method, methods) for method in methods if method not in names}
        lower = lower_is_better(finished)
        ends = final_scores(methods)
        best = (min if lower else max)(ends, key=ends.__getitem__) if ends else None
        return Comparison(records, methods, controls, unit(finished), lower, best, differences(methods, controls, best))

    @property
    def runs(self) -> list[Record]:
        """All finished runs."""
        return [run for runs in self.methods.values() for run in runs]

    @cached_property
    def ranking(self) -> pd.DataFrame:
        """`columns.ranking` of these methods."""
        return ranking(self.methods, self.lower)

    @property
    def size(self) -> int:
        """How many differences the correction is for."""
        return len({id(d) for d in self.differences.values() if not math.isnan(d.corrected)})

    def regime(self, method: str) -> Mapping:
        """How a method goes through its tasks (`types.Regime`)."""
        return self.methods[method][0]["regime"]

    def against_control(self, method: str, metric: str) -> Difference:
        """A method minus its control; a control minus 0."""
        control, _ = self.controls.get(method, ("", ""))
        return self.differences[method, control or "", metric]

    def against_best(self, method: str) -> Difference:
        """The final scores of the best and a method; of a method whose control is the best, its own minus that one's."""
        return self.differences[self.best or "", method, ACC]

    @property
    def ahead(self) -> list[str]:
        """The methods that clearly end better than the best where both were run: it owes its mean to runs that they lack."""
        rivals = [m for one, m, metric in self.differences if (one, metric) == (self.best, ACC)]
        return [m for m in rivals if self.against_best(m).clear and (self._gain(m) < 0) == self.lower]

    def _gain(self, method: str) -> float:
        """A method's final score minus that of the best."""
        estimate = self.against_best(method).estimate
        sign = 1 if (method, self.best, ACC) in self.differences else -1
        return sign * estimate.mean if estimate else math.nan


def final_scores(methods: Methods) -> dict[str, float]:
    """The mean final scores of the methods that learn one task after the other; a method without one is left out."""
    ends = {m: mean(runs, ACC) for m, runs in methods.items() if is_method(runs[0])}
    return {m: end for m, end in ends.items() if not math.isnan(end)}


def differences(
    methods: Methods, controls: Mapping[str, tuple[str | None, str]], best: str | None
) -> dict[Key, Difference]:
    """Every difference of a page, with its corrected p."""
    wanted: list[Key] = []
    for method, runs in methods.items():
        if method not in controls:
            wanted.append((method, "", BWT))
        elif control := controls[method][0]:
            wanted += [(method, control, f"metrics.{metric}") for metric in runs[0]["regime"]["compared"]]
    rivals = [m for m in final_scores(methods) if m != best]
    best = best or ""  # where none is best, there is no rival either
    wanted += [(best, m, ACC) for m in rivals if (m, best, ACC) not in wanted and (best, m, ACC) not in wanted]
    found = {key: _difference(methods, key) for key in wanted}
    ready = {k: d.estimate.p for k, d in found.items() if d.estimate and d.estimate.enough and not d.barrier}
    corrected = holm(ready)
    told = {k: Difference(d.estimate, corrected.get(k, math.nan), d.barrier) for k, d in found.items()}
    for m in rivals:  # the same pair of methods seen from the other side is not compared twice
        if (best, m, ACC) not in told:
            told[best, m, ACC] = told[m, best, ACC]
    return told


def _difference(methods: Methods, key: Key) -> Difference:
    method, other, metric = key
    if not other:
        return Difference(single(methods[method], metric))
    return Difference(paired(methods[method], methods[other], metric), barrier=barrier(methods[method], methods[other]))
