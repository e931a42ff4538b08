"""What a comparison can tell, before it is run: its units, and how large a difference must be to be claimed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from scipy.optimize import brentq
from scipy.special import stdtrit
from scipy.stats import nct

from cl_toolkit.report.estimate import ENOUGH, LEVEL

if TYPE_CHECKING:
    from cl_toolkit.config.schema import StudyConfig

POWER = 0.8


def told(study: StudyConfig, tasks: int) -> Iterator[str]:
    """The design in sentences. tasks: of its stream. A report makes a comparison for each method but the control at least, and
    is stricter where it makes more."""
    orders, seeds = len({run.order for run in study.runs}), len(study.seeds)
    n, unit = (orders, "orders") if orders > 1 else (seeds, "seeds of one order")
    comparisons = len(study.methods) - 1
    many = len(study.methods)
    yield f"{many} method{'s' * (many > 1)} x {orders} order{'s' * (orders > 1)} x {seeds} seed{'s' * (seeds > 1)}"
    if not comparisons:
        return
    if n < ENOUGH:
        yield f"no verdict: {n} {unit}, and it takes {ENOUGH} units to tell a difference from chance"
    else:
        least, sure = claimed(n, comparisons), found(n, comparisons)
        yield (
            f"units are {n} {unit}; with {comparisons} comparison{'s' * (comparisons > 1)} a difference is claimed from "
            f"{least:.1f} spreads of the paired differences on, and one of {sure:.1f} is found in "
            f"{POWER * 100:.0f} of 100 studies"
        )
    if orders == 1 and seeds > 1 and tasks > 1:
        yield (
            f"orders before seeds: {seeds} seeds of one order speak of that order alone; the same number of runs as "
            f"`orders: [given, {{random: {seeds - 1}}}]` with one seed speaks of {seeds}"
        )


def claimed(n: int, comparisons: int) -> float:
    """The mean difference over n units, in their standard deviations, whose t test passes Holm's first step."""
    return float(stdtrit(n - 1, 1 - LEVEL / comparisons / 2)) / math.sqrt(n)


def found(n: int, comparisons: int) -> float:
    """The true difference, in the same unit, that passes it with probability `POWER`."""
    critical = claimed(n, comparisons) * math.sqrt(n)
    lacking = lambda d: nct.sf(critical, n - 1, d * math.sqrt(n)) - POWER  # noqa: E731
    top = 1.0
    while lacking(top) < 0:
        top *= 2
    return float(brentq(lacking, 0, top))
