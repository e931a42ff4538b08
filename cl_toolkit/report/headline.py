"""Which methods end best, as far as the runs can tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cl_toolkit.report.columns import COLUMNS, cell
from cl_toolkit.report.comparison import ACC, Comparison, final_scores
from cl_toolkit.report.estimate import decimals, mean
from cl_toolkit.report.reading import chance
from cl_toolkit.report.sampling import sampling_variance

SURE = 1.96
"""Standard errors of the test sets by which the best must be above guessing to have learned something."""
NAMED = 6
"""Names in a row; of more the number is told."""
AMONG = "Of the methods that learn one task after the other, "


def headline(comparison: Comparison) -> str:
    """The methods that cannot be told from the one that ends best, and where control and joint training end; "" when no
    method has a final score. A lone method is named as best only where it was told from every other one."""
    if comparison.best is None:
        return ""
    ends = ends_of(comparison)
    text = no_best(comparison, ends) or _best(comparison, ends)
    bounds = [
        f"{m}, which {comparison.regime(m)['does']}, reaches {ends[m]}"
        for m in ends
        if comparison.regime(m)["upper_bound"]
    ]
    return "; ".join([text, *bounds]) + "."


def ends_of(comparison: Comparison) -> dict[str, str]:
    """Method -> its mean final score as the ranking shows it, best first."""
    return {str(m): cell(row, COLUMNS[0]) for m, row in comparison.ranking.iterrows() if row["acc_n"]}


def _best(comparison: Comparison, ends: Mapping[str, str]) -> str:
    best, methods = comparison.best or "", final_scores(comparison.methods)
    rivals = [m for m in ends if m in methods and m != best]
    apart = {m: comparison.against_best(m).barrier for m in rivals if comparison.against_best(m).barrier}
    same = [m for m in rivals if m not in apart and not comparison.against_best(m).clear]
    told = [m for m in rivals if m not in apart and m not in same]
    level = f"mean final {comparison.unit} {ends[best]}"
    others = [f"{ends[m]} for {m}" for m in told if m not in comparison.controls]
    against = f", against {' and '.join(others)}" if others else ""
    few = any((e := comparison.against_best(m).estimate) is None or not e.enough for m in same)
    why = " (too few runs to tell)" if few else ""
    if not rivals:
        text = f"{best} is the only method that learns one task after the other: {level}"
    elif same and told:
        # of more than two only those with the best are compared
        apart_not = "and cannot be told apart" if len(same) == 1 else f"and none of them can be told from {best}"
        text = f"{AMONG}{_listed([best, *same])} end best {apart_not}{why}: "
        text += f"{level} for {best}{against}"
    elif same:
        text = f"{AMONG}none can be told from the best{why}: {level} for {best}, "
        if len(same) > NAMED:  # where the control ends is told, however many there are
            same.sort(key=lambda m: m in comparison.controls)
        text += _first([f"{ends[m]} for {m}" for m in same], ", ")
    elif told:
        text = f"{AMONG}{best} ends best{_order(comparison, told)}: {level}{against}"
    else:
        text = f"{best} ends at a {level}"
    missing = [f"{m} is not compared ({reason})" for m, reason in apart.items()]
    return "; ".join([text, *missing])


def _order(comparison: Comparison, told: Sequence[str]) -> str:
    units = {e.unit for m in told if (e := comparison.against_best(m).estimate)}
    return " for this order" if "seeds" in units else ""


def _listed(names: Sequence[str]) -> str:
    return _first(names, " and ")


def _first(texts: Sequence[str], last: str) -> str:
    """As many as are named, with commas between and `last` before the last one."""
    if len(texts) > NAMED:
        texts, last = [*texts[: NAMED - 1], f"{len(texts) - NAMED + 1} more"], " and "
    return last.join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def no_best(comparison: Comparison, ends: Mapping[str, str]) -> str:
    """Why the method with the best mean must not be called the best; "" where it may."""
    return unlearned(comparison, ends) or _outrun(comparison, ends)


def _outrun(comparison: Comparison, ends: Mapping[str, str]) -> str:
    """That others end better than the one with the best mean in the runs that both have."""
    if not (ahead := comparison.ahead):
        return ""
    best, end = comparison.best or "", "ends" if len(ahead) == 1 else "end"
    return (
        f"{AMONG}none is told to end best: {best} has the best mean final {comparison.unit}, {ends[best]}, but not the same "
        f"runs as others, and of those that both have {_listed(ahead)} {end} better"
    )


def unlearned(comparison: Comparison, ends: Mapping[str, str]) -> str:
    """That no method ends above pure guessing; "" where the best does, or guessing has no known score."""
    best = comparison.best or ""
    runs = comparison.methods[best]
    levels = [chance(r) for r in runs]
    if comparison.lower or any(math.isnan(level) for level in levels):
        return ""
    guessing = sum(levels) / len(levels)
    error = math.sqrt(sum(sampling_variance(r, ACC) for r in runs)) / len(runs)
    if mean(runs, ACC) > guessing + SURE * error:
        return ""
    return (
        f"None learned: of the methods that learn one task after the other the best, {best}, ends at a mean final "
        f"{comparison.unit} of {ends[best]}, not distinguishable from pure guessing ({decimals(guessing)})"
    )
