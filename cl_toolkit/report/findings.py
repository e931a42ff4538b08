"""What the data say, in one sentence per method. Each method is compared with its control, run by run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cl_toolkit.report.comparison import ACC, BWT, LEARNING, Comparison, Difference
from cl_toolkit.report.costs import cost_sentence
from cl_toolkit.report.estimate import Estimate, decimals, mean
from cl_toolkit.report.likeness import beside
from cl_toolkit.report.reading import Record, lookup

CLEARLY_LESS = 0.05
"""Share of the control's learning accuracy; a method that misses more of it is said to have learned less."""


MANY = 8
"""Sentences that are read one after the other; of more those come first that tell a difference."""


@dataclass(frozen=True)
class Finding:
    """A sentence about a method, beginning with its name, and a warning about how to read it ("" without one). tells: False
    where it is not distinguishable from its control."""

    method: str
    text: str
    warning: str = ""
    tells: bool = True


def findings(comparison: Comparison) -> list[Finding]:
    """One finding per method with finished runs, controls first."""
    return [_finding(method, comparison) for method in comparison.methods]


def parted(found: Sequence[Finding]) -> tuple[list[Finding], list[Finding]]:
    """Those to be read first, and of many those that tell no difference."""
    later = [f for f in found if not f.tells] if len(found) > MANY else []
    return [f for f in found if f not in later], later


def _finding(method: str, comparison: Comparison) -> Finding:
    runs, regime, score = comparison.methods[method], comparison.regime(method), comparison.unit
    reasons = {lookup(runs[0], f"undefined.{metric}") for metric in regime["compared"]}
    if len(reasons) == 1 and None not in reasons:
        return Finding(method, f"{method} has no final {score} to compare: {reasons.pop()}.")
    if method not in comparison.controls:
        return Finding(method, _control(method, comparison))
    if not regime["trained"]:
        return Finding(method, f"{method} {regime['does']}: {score} {_level(runs, ACC)}.")
    control, caveat = comparison.controls[method]
    if control is None:
        reached = f"reaches a learning {score} of {_level(runs, LEARNING)} (n={len(runs)})"
        text = f"{method} {reached if regime['restarts'] else _ending(runs, score)}."
        return Finding(method, text, "No control was run, so its effect is unknown.")
    base = comparison.methods[control]
    warning = " ".join(filter(None, [beside(runs, base), caveat]))
    if regime["upper_bound"]:
        end = _difference(f"its final {score}", comparison.against_control(method, ACC), control)
        text = f"{method} {regime['does']} and cannot forget, so only its end is compared: {end}."
        return Finding(method, text, warning)
    if regime["restarts"]:
        learned = _difference(f"its learning {score}", comparison.against_control(method, LEARNING), control)
        text = f"{method} {regime['does']}, a ceiling per task, and reaches {_level(runs, LEARNING)} on average"
        return Finding(method, f"{text}: {learned}.", warning)
    final = comparison.against_control(method, ACC)
    if final.barrier:
        text = f"{method} is not compared with {control}: {final.barrier}; it {_ending(runs, score)}"
        return Finding(method, f"{text}.", caveat)
    text = "; ".join(filter(None, [_compared(method, control, comparison), cost_sentence(runs, base)]))
    warning = " ".join(filter(None, [_learned_less(runs, base, comparison.lower), warning]))
    compared = [final, comparison.against_control(method, BWT)]
    tells = any(d.clear for d in compared) or all(d.estimate is None for d in compared)  # nothing was looked at then
    return Finding(method, f"{text}.", warning, tells)


def scope(difference: Difference) -> str:
    """` for this order` where a difference was seen in one task order only."""
    return " for this order" if difference.estimate and difference.estimate.unit == "seeds" else ""


def _control(method: str, comparison: Comparison) -> str:
    runs, lost, score = comparison.methods[method], comparison.against_control(method, BWT), comparison.unit
    others = len(comparison.methods) - len(comparison.controls) - 1
    which = "one of the controls" if others else "the control"
    if lost.estimate is None:
        return f"{method}, {which}, {_ending(runs, score)}."
    loses = lost.estimate.mean > 0 if comparison.lower else lost.estimate.mean < 0
    if lost.estimate.enough and not lost.clear:
        change = f"what it loses of that{scope(lost)} is not distinguishable from 0: BWT {lost}"
    elif loses:
        change = f"loses {decimals(abs(lost.estimate.mean))} of that on the earlier tasks by the end{scope(lost)}: "
        change += f"BWT {lost}"
    else:
        change = f"loses nothing of that by the end{scope(lost)}: BWT {lost}"
    few = "" if lost.estimate.enough else f" ({_few(lost.estimate).removeprefix('in ')})"
    return (
        f"{method}, {which}, learns each task to {_level(runs, LEARNING)} and {change}{few}; "
        f"final {score} {_level(runs, ACC)}."
    )


def _few(estimate: Estimate) -> str:
    """That there are too few units for a verdict; of one order, one seed is one run."""
    n, unit = estimate.n, estimate.unit
    return "in one run, no spread" if n == 1 else f"in {n} {unit}, too few for a verdict"


def _compared(method: str, control: str, comparison: Comparison) -> str:
    forgets, ends = comparison.against_control(method, BWT), comparison.against_control(method, ACC)
    score = comparison.unit
    final = _difference(f"its final {score}", ends, control)
    if forgets.estimate is None:
        return f"{method}: {final}"
    if not forgets.estimate.enough:
        text = f"{method} {_few(forgets.estimate)}: BWT differs from {control}'s{scope(forgets)} by {forgets}"
        few = ends.estimate and not ends.estimate.enough and not ends.barrier
        return f"{text}, final {score} by {ends}" if few else f"{text}; {final}"
    if forgets.clear:
        less = (forgets.estimate.mean > 0) != comparison.lower
        verdict = f"forgets {'less' if less else 'more'} than {control}{scope(forgets)}"
    else:
        verdict = f"is not distinguishable from {control} in forgetting{scope(forgets)}"
    return f"{method} {verdict}: BWT differs by {forgets}; {final}"


def _difference(what: str, found: Difference, control: str) -> str:
    """`its final accuracy is higher than sequential's for this order, by +0.27 (...)`."""
    if found.barrier:
        return f"{what} is not compared with {control}'s: {found.barrier}"
    if found.estimate is None:
        return f"{what} cannot be compared with {control}'s: there is no task order and seed for which both are known"
    if not found.estimate.enough:
        return f"{_few(found.estimate)}, {what} differs from {control}'s{scope(found)} by {found}"
    if found.clear:
        side = "higher" if found.estimate.mean > 0 else "lower"
        return f"{what} is {side} than {control}'s{scope(found)}, by {found}"
    return f"{what} is not distinguishable from {control}'s{scope(found)}, by {found}"


def _level(runs: Sequence[Record], metric: str) -> str:
    value = mean(runs, metric)
    return "(undefined)" if math.isnan(value) else decimals(value)


def _ending(runs: Sequence[Record], score: str) -> str:
    """Where a method ends, with nothing to compare it to."""
    bwt = mean(runs, BWT)
    text = f"ends at a final {score} of {_level(runs, ACC)}" + ("" if math.isnan(bwt) else f" with BWT {decimals(bwt)}")
    return text + (" (one run, no spread)" if len(runs) == 1 else f" (n={len(runs)})")


def _learned_less(runs: Sequence[Record], base: Sequence[Record], lower: bool) -> str:
    own, control = mean(runs, LEARNING), mean(base, LEARNING)
    missed = own - control if lower else control - own
    if not missed > CLEARLY_LESS * abs(control):
        return ""
    levels = f"{decimals(own)} against {decimals(control)}"
    return f"It learned less, {levels}: a model that learned less cannot forget as much."
