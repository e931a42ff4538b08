"""What a method costs beside its control: counted work and compute seconds, never wall-clock."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cl_toolkit.report.columns import amount
from cl_toolkit.report.estimate import mean
from cl_toolkit.report.reading import Record, lookup

COUNTED = (("cost.steps", "steps"), ("cost.tokens", "target tokens"), ("cost.forwards", "forwards"))
"""Counts of a run that are the same wherever it runs, and their names."""
SECONDS = "compute s"
"""Seconds of which it is not known whether they are a processor's or a GPU's."""
SAME = 0.05
"""Costs that differ by less than this share are called equal."""


def compute_unit(runs: Sequence[Record]) -> str:
    """`CPU s` or `GPU s`; `SECONDS` where the runs do not share one or do not say."""
    units = {lookup(r, "cost.compute_unit") for r in runs}
    return str(*units) if len(units) == 1 and None not in units else SECONDS


def cost_sentence(runs: Sequence[Record], base: Sequence[Record]) -> str:
    """`it costs 2.1 times the forwards and 1.9 times the CPU seconds, and stores 512 examples`; "" if nothing is known.

    Counts that are equal are left out, beside the forwards. Seconds are compared where all runs count the same ones.
    """
    parts = []
    for path, name in COUNTED:
        ratio = mean(runs, path) / (mean(base, path) or math.nan)
        if not math.isnan(ratio) and (abs(ratio - 1) > SAME or name == "forwards"):
            parts.append(_times(ratio, name))
    unit = compute_unit([*runs, *base])
    ratio = mean(runs, "cost.compute_seconds.train") / (mean(base, "cost.compute_seconds.train") or math.nan)
    if unit != SECONDS and not math.isnan(ratio):
        parts.append(_times(ratio, unit.replace(" s", " seconds")))
    stored = mean(runs, "cost.stored_examples")
    kept = f"stores {amount(stored)} examples" if stored > 0 else ""
    costs = "costs " + " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else ""
    return f"it {', and '.join(filter(None, [costs, kept]))}" if costs or kept else ""


def reuse_sentence(runs: Sequence[Record]) -> str:
    """How many runs went on from another one's first task, and what that spared; "" where none did."""
    seconds = [given["compute_seconds"] for run in runs if (given := run.get("reused"))]
    if not seconds:
        return ""
    spent = sum(sum(run["cost"]["compute_seconds"].values()) for run in runs)
    return (
        f"{len(seconds)} of {len(runs)} runs went on from the first task as another run had trained it, which spared "
        f"{amount(sum(seconds))} of {amount(spent)} {compute_unit(runs)}; each one's costs are those of training it itself."
    )


def _times(ratio: float, name: str) -> str:
    return f"as many {name}" if abs(ratio - 1) <= SAME else f"{ratio:.2g} times the {name}"
