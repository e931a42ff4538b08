"""How much each method was given: steps, new examples, rows, tokens."""

from __future__ import annotations

from collections.abc import Mapping

from cl_toolkit.report.columns import amount
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.costs import SAME
from cl_toolkit.report.estimate import mean

COUNTED = {
    "steps": "cost.steps",
    "new examples": "cost.new_examples",
    "rows": "cost.examples",
    "target tokens": "cost.tokens",
}
"""What is counted, and where it stands in a record."""


def given(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Method -> what it was given, means over its runs; NaN where records do not say. Those that do not train are left out."""
    return {
        method: {name: mean(runs, path) for name, path in COUNTED.items()}
        for method, runs in comparison.methods.items()
        if runs[0]["regime"]["trained"]
    }


def uneven(amounts: Mapping[str, Mapping[str, float]]) -> str:
    """In a sentence what methods are not given equally, with the one that is given least and the one that is given most; ""
    where all are alike."""
    told = []
    for name in next(iter(amounts.values()), {}):
        known = {method: own[name] for method, own in amounts.items() if own[name] > 0}
        if not known:
            continue
        least, most = (pick(known, key=known.__getitem__) for pick in (min, max))
        if known[most] > (1 + SAME) * known[least]:
            told.append(f"{name} {amount(known[least])} ({least}) to {amount(known[most])} ({most})")
    return f"Methods are not given equally much: {'; '.join(told)}." if told else ""
