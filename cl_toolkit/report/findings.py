"""What the data say, in one sentence per method. Each method is compared with its control, run by run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cl_toolkit.report.estimate import Estimate, decimals, mean, paired, signed
from cl_toolkit.report.records import Record, by_method, control_of, is_control, lower_is_better, number
from cl_toolkit.report.tables import METRICS, amount, cell, ranking

CLEARLY_LESS = 0.05
"""Share of the control's learning accuracy; a method that misses more of it is said to have learned less."""


@dataclass(frozen=True)
class Finding:
    """A sentence about a method, beginning with its name, and a warning about how to read it ("" without one)."""

    method: str
    text: str
    warning: str = ""


def findings(records: Sequence[Record]) -> list[Finding]:
    """One finding per method with finished runs, controls first."""
    groups, score = by_method(records), _score(records)
    return [_finding(method, groups, score) for method in groups]


def headline(records: Sequence[Record]) -> str:
    """Which method ends best, and where control and joint training end; "" when no method has a final score."""
    groups, table = by_method(records), ranking(records)
    ends = {m: cell(row, METRICS[0]) for m, row in table.iterrows() if row["acc_n"]}
    methods = [m for m in ends if groups[m][0].get("view", "sequential") == "sequential"]
    if not methods:
        return ""
    best, *rest = methods
    others = [f"{ends[m]} for {m}" for m in rest if is_control(groups[m][0])]
    text = f"Of the methods that learn one task after the other, {best} ends best: "
    text += f"mean final {_score(records)} {ends[best]}"
    text += f", against {' and '.join(others)}" if others else ""
    joint = [
        f"{m}, which sees all tasks at once, reaches {ends[m]}" for m in ends if groups[m][0].get("view") == "joint"
    ]
    return "; ".join([text, *joint]) + "."


def cautions(records: Sequence[Record]) -> list[str]:
    """What limits the whole comparison: few runs, one order, small test sets."""
    groups = by_method(records)
    runs = [run for group in groups.values() for run in group]
    if not runs:
        return []
    notes, most = [], max(len(group) for group in groups.values())
    if most == 1:
        notes.append("One run per method: there is no spread, so no difference here can be told from chance.")
    elif most == 2:
        notes.append("Two runs per method: intervals are wide (t = 12.7). Three seeds or more narrow them.")
    if len({str(r.get("order")) for r in runs}) == 1 and max(len(r.get("tasks") or ()) for r in runs) > 1:
        notes.append("One task order: another order can change who forgets most.")
    size = min((n for r in runs for n in r.get("examples_scored") or () if n), default=100)
    if size < 100 and not lower_is_better(records):
        notes.append(f"The smallest test set has {size} examples: one answer moves its score by {1 / size:.2g}.")
    return notes


def _score(records: Sequence[Record]) -> str:
    return "perplexity" if lower_is_better(records) else "accuracy"


def _finding(method: str, groups: Mapping[str, list[Record]], score: str) -> Finding:
    runs, view = groups[method], groups[method][0].get("view", "sequential")
    if is_control(runs[0]):
        return Finding(method, _control(method, runs, score))
    if view == "start":
        return Finding(method, f"{method} is the model before any training: {score} {_level(runs, 'acc')}.")
    control, caveat = control_of(method, groups)
    if control is None:
        return Finding(method, f"{method} {_ending(runs, score)}.", "No control was run, so its effect is unknown.")
    base = groups[control]
    if view == "joint":
        text = f"{method} sees all tasks at once and cannot forget, so only its end is compared: "
        return Finding(
            method, text + _difference(f"final {score}", paired(runs, base, "metrics.acc"), control) + ".", caveat
        )
    if view == "independent":
        learned = _difference(f"learning {score}", paired(runs, base, "metrics.learning_accuracy"), control)
        text = f"{method} trains each task alone from the start model, a ceiling per task, and reaches "
        return Finding(method, f"{text}{_level(runs, 'learning_accuracy')} on average: {learned}.", caveat)
    text = "; ".join(filter(None, [_compared(method, runs, control, base, score), _cost(runs, base)]))
    return Finding(method, f"{text}.", " ".join(filter(None, [_learned_less(runs, base, score), caveat])))


def _control(method: str, runs: Sequence[Record], score: str) -> str:
    bwt = Estimate.of([number(r, "metrics.bwt") for r in runs])
    if bwt is None:
        return f"{method}, the control, {_ending(runs, score)}."
    if bwt.n > 1 and not bwt.clear:
        change = f"what it loses of that is not distinguishable from 0: BWT {bwt}"
    elif bwt.mean > 0 if score == "perplexity" else bwt.mean < 0:
        change = f"loses {decimals(abs(bwt.mean))} of that on the earlier tasks by the end: BWT {bwt}"
    else:
        change = f"loses nothing of that by the end: BWT {bwt}"
    lone = " (one run, no spread)" if bwt.n == 1 else ""
    learned = _level(runs, "learning_accuracy")
    return (
        f"{method}, the control, learns each task to {learned} and {change}{lone}; final {score} {_level(runs, 'acc')}."
    )


def _compared(method: str, runs: Sequence[Record], control: str, base: Sequence[Record], score: str) -> str:
    bwt, acc = paired(runs, base, "metrics.bwt"), paired(runs, base, "metrics.acc")
    if bwt is None:
        return f"{method}: {_difference(f'final {score}', acc, control)}"
    if bwt.n == 1:
        text = f"{method} in one run, no spread: BWT differs from {control}'s by {bwt}"
        return f"{text} and final {score} by {acc}" if acc else text
    if bwt.clear:
        verdict = f"forgets {'less' if (bwt.mean > 0) != (score == 'perplexity') else 'more'} than {control}"
    else:
        verdict = f"is not distinguishable from {control} in forgetting"
    text = f"{method} {verdict}: BWT differs by {bwt}"
    if acc is None:
        return text
    if acc.n == 1:
        return f"{text}, final {score} in one run by {acc}"
    interval = acc.interval if acc.n == bwt.n else f"{acc.interval}, n={acc.n}"
    if acc.clear:
        return f"{text}, final {score} by {signed(acc.mean)} ({interval})"
    return f"{text}; the difference in final {score}, {signed(acc.mean)} ({interval}), is not distinguishable from 0"


def _difference(what: str, difference: Estimate | None, control: str) -> str:
    if difference is None:
        return f"no run shares task order and seed with one of {control}, so {what} cannot be compared"
    if difference.n == 1:
        return f"in one run, no spread, {what} differs from {control}'s by {difference}"
    if difference.clear:
        return f"{what} differs from {control}'s by {difference}"
    return f"{what} is not distinguishable from {control}'s, the difference is {difference}"


def _level(runs: Sequence[Record], metric: str) -> str:
    value = mean(runs, f"metrics.{metric}")
    return "(undefined)" if math.isnan(value) else decimals(value)


def _ending(runs: Sequence[Record], score: str) -> str:
    """Where a method ends, with nothing to compare it to."""
    bwt = mean(runs, "metrics.bwt")
    text = f"ends at a final {score} of {_level(runs, 'acc')}" + (
        "" if math.isnan(bwt) else f" with BWT {decimals(bwt)}"
    )
    return text + (" (one run, no spread)" if len(runs) == 1 else f" (n={len(runs)})")


def _cost(runs: Sequence[Record], base: Sequence[Record]) -> str:
    ratio = mean(runs, "cost.seconds.train") / (mean(base, "cost.seconds.train") or math.nan)
    stored = mean(runs, "cost.stored_examples")
    parts = []
    if not math.isnan(ratio):
        same = 0.95 < ratio < 1.05
        parts.append("training takes as long" if same else f"training takes {ratio:.2g} times as long")
    if stored > 0:
        parts.append(f"it stores {amount(stored)} examples")
    return " and ".join(parts)


def _learned_less(runs: Sequence[Record], base: Sequence[Record], score: str) -> str:
    own, control = mean(runs, "metrics.learning_accuracy"), mean(base, "metrics.learning_accuracy")
    missed = own - control if score == "perplexity" else control - own
    if not missed > CLEARLY_LESS * abs(control):
        return ""
    levels = f"{decimals(own)} against {decimals(control)}"
    return f"It learned less, {levels}: a model that learned less cannot forget as much."
