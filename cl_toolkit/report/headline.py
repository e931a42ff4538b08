"""Which methods end best, as far as the runs can tell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cl_toolkit.report.estimate import decimals, mean
from cl_toolkit.report.family import ACC, Family, family, one_after_the_other
from cl_toolkit.report.records import Record, chance, is_control, lookup, lower_is_better, unit
from cl_toolkit.report.sampling import sampling_variance
from cl_toolkit.report.tables import COLUMNS, cell, ranking

SURE = 1.96
"""Standard errors of the test sets by which the best must be above guessing to have learned something."""
AMONG = "Of the methods that learn one task after the other, "


def headline(records: Sequence[Record]) -> str:
    """The methods that cannot be told from the one that ends best, and where control and joint training end; "" when no
    method has a final score. A lone method is named as best only where it was told from every other one."""
    made, table = family(records), ranking(records)
    if made.best is None:
        return ""
    ends = {m: cell(row, COLUMNS[0]) for m, row in table.iterrows() if row["acc_n"]}
    score = unit(records)
    text = unlearned(made, ends, score, lower_is_better(records)) or _best(made, ends, score)
    bounds = [
        f"{m}, which {lookup(made.groups[m][0], 'regime.does')}, reaches {ends[m]}"
        for m in ends
        if lookup(made.groups[m][0], "regime.upper_bound")
    ]
    return "; ".join([text, *bounds]) + "."


def _best(made: Family, ends: dict[str, str], score: str) -> str:
    rivals = [m for m in ends if m in one_after_the_other(made.groups) and m != made.best]
    apart = {m: made.against_best(m).barrier for m in rivals if made.against_best(m).barrier}
    same = [m for m in rivals if m not in apart and not made.against_best(m).clear]
    told = [m for m in rivals if m not in apart and m not in same]
    level = f"mean final {score} {ends[made.best]}"
    others = [f"{ends[m]} for {m}" for m in told if is_control(made.groups[m][0])]
    against = f", against {' and '.join(others)}" if others else ""
    few = any((e := made.against_best(m).estimate) is None or not e.enough for m in same)
    why = " (too few runs to tell)" if few else ""
    if not rivals:
        text = f"{made.best} is the only method that learns one task after the other: {level}"
    elif same and told:
        text = f"{AMONG}{_listed([made.best, *same])} end best and cannot be told apart{why}: "
        text += f"{level} for {made.best}{against}"
    elif same:
        text = f"{AMONG}none can be told from the best{why}: {level} for {made.best}, "
        text += ", ".join(f"{ends[m]} for {m}" for m in same)
    elif told:
        text = f"{AMONG}{made.best} ends best{_order(made, told)}: {level}{against}"
    else:
        text = f"{made.best} ends at a {level}"
    missing = [f"{m} is not compared ({reason})" for m, reason in apart.items()]
    return "; ".join([text, *missing])


def _order(made: Family, told: Sequence[str]) -> str:
    units = {made.against_best(m).estimate.unit for m in told}
    return " for this order" if "seeds" in units else ""


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def unlearned(made: Family, ends: dict[str, str], score: str, lower: bool) -> str:
    """That no method ends above pure guessing; "" where the best does, or guessing has no known score."""
    runs = made.groups[made.best]
    levels = [chance(r) for r in runs]
    if lower or any(math.isnan(level) for level in levels):
        return ""
    guessing = sum(levels) / len(levels)
    error = math.sqrt(sum(sampling_variance(r, ACC) for r in runs)) / len(runs)
    if mean(runs, ACC) > guessing + SURE * error:
        return ""
    return (
        f"None learned: of the methods that learn one task after the other the best, {made.best}, ends at a mean final "
        f"{score} of {ends[made.best]}, not distinguishable from pure guessing ({decimals(guessing)})"
    )
