"""What a comparison can tell, before it is run: its units, and how large a difference must be to be claimed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from scipy.optimize import brentq
from scipy.special import stdtrit
from scipy.stats import nct

from cl_toolkit.registry import OBJECTIVES
from cl_toolkit.report.estimate import ENOUGH, LEVEL

if TYPE_CHECKING:
    from cl_toolkit.config.schema import StudyConfig

POWER = 0.8


def told(study: StudyConfig, tasks: int) -> Iterator[str]:
    """The design in sentences. tasks: of its stream."""
    orders, seeds = len({run.order for run in study.runs}), len(study.seeds)
    n, unit = (orders, "orders") if orders > 1 else (seeds, "seeds of one order")
    many = len(study.methods)
    yield f"{many} method{'s' * (many > 1)} x {orders} order{'s' * (orders > 1)} x {seeds} seed{'s' * (seeds > 1)}"
    if many == 1:
        return
    comparisons = made(study, tasks)
    if n < ENOUGH:
        yield f"no verdict: {n} {unit}, and it takes {ENOUGH} units to tell a difference from chance"
    else:
        least, sure = claimed(n, comparisons), found(n, comparisons)
        yield (
            f"units are {n} {unit}; with {comparisons} comparison{'s' * (comparisons > 1)} on the page a difference is "
            f"claimed from {least:.1f} spreads of the paired differences on, and one of {sure:.1f} is found in "
            f"{POWER * 100:.0f} of 100 studies"
        )
    if orders == 1 and seeds > 1 and tasks > 1:
        yield (
            f"orders before seeds: {seeds} seeds of one order speak of that order alone; the same number of runs as "
            f"`orders: [given, {{random: {seeds - 1}}}]` with one seed speaks of {seeds}"
        )


def made(study: StudyConfig, tasks: int) -> int:
    """How many comparisons its page makes (`comparison.differences`) where all runs finish and another method than a control
    ends best: what each control forgets, of each other method what its regime allows, and the best beside the others."""
    first = {run.method: run for run in reversed(study.runs)}.values()
    rivals = [run for run in first if run.regime.is_method]
    controls = [run for run in rivals if not run.strategies]
    controls = [r for r in controls if OBJECTIVES.get(r.objective.name, "objective.name").is_baseline] or controls
    known = [metric for metric in ("bwt", "acc") if metric != "bwt" or tasks > 1]
    beside = sum(len({*run.regime.compared} & {*known, "learning_accuracy"}) for run in first if run not in controls)
    told_apart = max(len(rivals) - 1, 0)
    # the best and its own control are compared once
    return len(controls) * (tasks > 1) + beside + told_apart - (len(rivals) > len(controls) > 0)


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
