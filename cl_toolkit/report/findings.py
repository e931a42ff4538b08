"""What the data say, in one sentence per method. Each method is compared with its control, run by run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cl_toolkit.report.records import (
    Record,
    by_method,
    control_of,
    is_bare,
    is_control,
    lower_is_better,
    number,
    objective,
)
from cl_toolkit.report.tables import amount, decimals, ranking

CLEARLY_LESS = 0.05
"""Share of the control's learning accuracy; a method that misses more of it is said to have learned less."""


@dataclass(frozen=True)
class Finding:
    """A sentence about a method, and a warning about how to read it ("" without one)."""

    method: str
    text: str
    warning: str = ""


@dataclass(frozen=True)
class Estimate:
    """A mean over n runs with its 95% t interval; low and high are NaN for n = 1."""

    mean: float
    low: float
    high: float
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> Estimate | None:
        """None without values."""
        values = np.array([v for v in values if not math.isnan(v)])
        n = len(values)
        if not n:
            return None
        mean = float(values.mean())
        half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
        return Estimate(mean, float(mean - half), float(mean + half), n)

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0. One run never does."""
        return self.n > 1 and (self.low > 0 or self.high < 0)

    def __str__(self) -> str:
        if self.n == 1:
            return signed(self.mean)
        return f"{signed(self.mean)} (95% interval {signed(self.low)} to {signed(self.high)}, n = {self.n})"


def signed(value: float) -> str:
    """`+0.41`, `-0.20`, `0.00`."""
    text = decimals(value)
    return text if text.startswith("-") or text == "0.00" else f"+{text}"


def findings(records: Sequence[Record]) -> list[Finding]:
    """One finding per method with finished runs, controls first."""
    groups = by_method(records)
    return [_finding(method, groups, lower_is_better(records)) for method in groups]


def headline(records: Sequence[Record]) -> str:
    """Which method ends best, and where the plain control and joint training end; "" when nothing has a final score."""
    groups, table, score = by_method(records), ranking(records), _score(lower_is_better(records))
    ends = {m: f"{decimals(v)}" for m, v in table["acc"].items() if not math.isnan(v)}
    methods = [m for m in ends if groups[m][0].get("view", "sequential") == "sequential"]
    if not methods:
        return ""
    rest = [f"{m} with {ends[m]}" for m in ends if is_control(groups[m][0]) and m != methods[0]]
    rest += [f"{m}, which sees all tasks at once, with {ends[m]}" for m in ends if groups[m][0].get("view") == "joint"]
    text = f"{methods[0]} has the best mean final {score} of the methods that learn one task after the other, {ends[methods[0]]}"
    return f"{text}; {', and '.join(rest)}." if rest else f"{text}."


def cautions(records: Sequence[Record]) -> list[str]:
    """What limits the whole comparison: few seeds, one order, small test sets."""
    runs = [run for group in by_method(records).values() for run in group]
    if not runs:
        return []
    seeds, orders = ({str(r.get(key)) for r in runs} for key in ("seed", "order"))
    notes = []
    if len(seeds) * len(orders) == 1:
        notes.append("One run per method: there is no spread, so no difference here can be told from chance.")
    elif len(seeds) * len(orders) == 2:
        notes.append("Two runs per method: intervals are wide (t = 12.7). Three seeds or more narrow them.")
    if len(orders) == 1 and max(len(r.get("tasks") or ()) for r in runs) > 1:
        notes.append("One task order: another order can change who forgets most.")
    sizes = [n for r in runs for n in r.get("examples_scored") or () if n]
    if sizes and min(sizes) < 100:
        notes.append(f"The smallest test set has {min(sizes)} examples: one answer moves its score by {1 / min(sizes):.2g}.")
    return notes


def _score(lower: bool) -> str:
    return "perplexity" if lower else "accuracy"


def _finding(method: str, groups: Mapping[str, list[Record]], lower: bool) -> Finding:
    runs, view = groups[method], groups[method][0].get("view", "sequential")
    if is_control(runs[0]):
        return Finding(method, _control(method, runs, lower))
    control, caveat = control_of(method, groups)
    if control is None:
        return Finding(method, f"{method} {_levels(runs, lower)}.", "No control was run, so nothing can be said about its effect.")
    caveat = f"{caveat[0].upper()}{caveat[1:]}." if caveat else ""
    if view == "joint":
        acc = _versus("final " + _score(lower), _paired(runs, groups[control], "metrics.acc"), control)
        return Finding(method, f"{method} sees all tasks at once, so there is nothing it could forget: only {acc}.", caveat)
    if view == "independent":
        own = _level(runs, "metrics.learning_accuracy")
        learned = _versus(f"learning {_score(lower)}", _paired(runs, groups[control], "metrics.learning_accuracy"), control)
        return Finding(method, f"{method} trains each task alone from the start model and reaches {own}, a ceiling per task: {learned}.", caveat)
    if view == "start":
        return Finding(method, f"{method} is the model before any training: {_score(lower)} {_level(runs, 'metrics.acc')}.")
    return _compared(method, runs, control, groups[control], lower, caveat)


def _control(method: str, runs: Sequence[Record], lower: bool) -> str:
    learned, bwt = _level(runs, "metrics.learning_accuracy"), Estimate.of([number(r, "metrics.bwt") for r in runs])
    if bwt is None:
        return f"{method}, the control, {_levels(runs, lower)}."
    worse = bwt.mean > 0 if lower else bwt.mean < 0
    if bwt.n > 1 and not bwt.clear:
        change = f"what it then loses is not distinguishable from 0: BWT {bwt}"
    elif worse:
        change = f"loses {decimals(abs(bwt.mean))} of that on the earlier tasks by the end: BWT {bwt}"
    else:
        change = f"loses nothing of that by the end: BWT {bwt}"
    return f"{method}, the control, learns each task to {learned} and {change}{_lone(bwt)}; final {_score(lower)} {_level(runs, 'metrics.acc')}."


def _compared(
    method: str, runs: Sequence[Record], control: str, control_runs: Sequence[Record], lower: bool, caveat: str
) -> Finding:
    bwt, acc = (_paired(runs, control_runs, f"metrics.{key}") for key in ("bwt", "acc"))
    if bwt is None:
        text = f"{method}: {_versus('final ' + _score(lower), acc, control)}"
    elif bwt.n == 1:
        text = f"{method} in one run, no spread: BWT differs from {control}'s by {bwt}"
        text += f" and final {_score(lower)} by {acc}" if acc else ""
    else:
        if bwt.clear:
            verdict = f"forgets {'less' if (bwt.mean > 0) != lower else 'more'} than {control}"
        else:
            verdict = f"is not distinguishable from {control} in forgetting"
        text = f"{method} {verdict}: BWT differs by {bwt}"
        if acc:
            text += f"; final {_score(lower)} " + ("" if acc.clear or acc.n == 1 else "is not distinguishable, it ") + f"differs by {acc}"
    cost = _cost(runs, control_runs)
    return Finding(method, f"{text}; {cost}." if cost else f"{text}.", " ".join(filter(None, [_learned_less(runs, control_runs, lower), caveat])))


def _versus(what: str, difference: Estimate | None, control: str) -> str:
    if difference is None:
        return f"no run shares seed and order with a run of {control}, so the {what} is not compared"
    if difference.n == 1:
        return f"{what} differs from {control}'s by {difference} in one run, no spread"
    if difference.clear:
        return f"{what} differs from {control}'s by {difference}"
    return f"{what} is not distinguishable from {control}'s, it differs by {difference}"


def _paired(runs: Sequence[Record], control_runs: Sequence[Record], path: str) -> Estimate | None:
    """Run minus control, over the pairs with the same order and seed."""
    control = {(str(r.get("order")), str(r.get("seed"))): number(r, path) for r in control_runs}
    keys = [(str(r.get("order")), str(r.get("seed"))) for r in runs]
    return Estimate.of([number(r, path) - control[k] for r, k in zip(runs, keys, strict=True) if k in control])


def _mean(runs: Sequence[Record], path: str) -> float:
    estimate = Estimate.of([number(r, path) for r in runs])
    return estimate.mean if estimate else math.nan


def _level(runs: Sequence[Record], path: str) -> str:
    mean = _mean(runs, path)
    return "undefined" if math.isnan(mean) else decimals(mean)


def _levels(runs: Sequence[Record], lower: bool) -> str:
    bwt = _level(runs, "metrics.bwt")
    ending = f"ends at a final {_score(lower)} of {_level(runs, 'metrics.acc')}" + (f" with BWT {bwt}" if bwt != "undefined" else "")
    return ending + (" (one run, no spread)" if len(runs) == 1 else f" (n = {len(runs)})")


def _lone(estimate: Estimate) -> str:
    return " (one run, no spread)" if estimate.n == 1 else ""


def _cost(runs: Sequence[Record], control_runs: Sequence[Record]) -> str:
    ratio = _mean(runs, "cost.seconds.train") / (_mean(control_runs, "cost.seconds.train") or math.nan)
    stored = _mean(runs, "cost.stored_examples")
    parts = []
    if not math.isnan(ratio):
        parts.append("training takes as long" if 0.95 < ratio < 1.05 else f"training takes {amount(round(ratio, 1))} times as long")
    if stored > 0:
        parts.append(f"it stores {amount(stored)} examples")
    return " and ".join(parts)


def _learned_less(runs: Sequence[Record], control_runs: Sequence[Record], lower: bool) -> str:
    own, control = (_mean(r, "metrics.learning_accuracy") for r in (runs, control_runs))
    missed = (own - control if lower else control - own) / (abs(control) or math.nan)
    if not missed > CLEARLY_LESS:
        return ""
    return f"It learned less, {decimals(own)} against {decimals(control)}: a model that learned less cannot forget as much."
