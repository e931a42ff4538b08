"""What limits the whole comparison. Only what applies is said."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from cl_toolkit.report import budgets
from cl_toolkit.report.choices import uneven
from cl_toolkit.report.columns import amount
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.design import claimed
from cl_toolkit.report.estimate import ENOUGH, mean
from cl_toolkit.report.likeness import identity, init_seed
from cl_toolkit.report.reading import Record

SMALL = 100
"""Examples; a smaller test set is warned about."""
COUNTS = (
    ("truncated_prompts", "prompts were longer than prompt.max_prompt_length and were cut"),
    ("cut_answers", "answers were cut at their greatest length before they ended"),
    ("unreachable_answers", "right answers cannot be reached, whatever the model says"),
)
"""Keys of a record that count examples, and what it means if there are any."""


def cautions(comparison: Comparison) -> list[str]:
    """Few runs, one order, the number of comparisons, one start model, cut data, small test sets, what runs have noted, methods
    whose settings were not searched like those of others, unequal budgets."""
    runs = comparison.runs
    if not runs:
        return []
    return [
        *_design(comparison, runs),
        *_missing(comparison.records),
        *_data(runs, comparison.lower),
        *_noted(comparison),
        *uneven(comparison),
        *_budgets(comparison),
    ]


def _design(comparison: Comparison, runs: Sequence[Record]) -> Iterator[str]:
    most = max(len(group) for group in comparison.methods.values())
    orders = len({str(r.get("order")) for r in runs})
    if most == 1:
        yield "One run per method: there is no spread, so no difference here can be told from chance."
    elif most < ENOUGH:
        yield f"Two runs per method are too few for a verdict: none is given from fewer than {ENOUGH}."
    if orders == 1 and max(len(r.get("tasks") or ()) for r in runs) > 1:
        yield "One task order: every statement is about this order; another one can change who forgets most."
    elif 1 < orders < ENOUGH:
        yield f"{orders} task orders: differences are told from orders, and fewer than {ENOUGH} are too few for a verdict."
    if (
        len({frozenset((str(r.get("order")), str(r.get("seed"))) for r in own) for own in comparison.methods.values()})
        > 1
    ):
        yield "Methods do not have the same runs: a mean is over a method's own, a difference over the runs that both have."
    if (size := comparison.size) > 1:
        yield (
            f"The page makes {size} comparisons. A difference is claimed where p, corrected for all {size} by "
            f"Holm's method, is at most 0.05{_least(orders, runs, size)}; the intervals are of one comparison at a time."
        )
    seeds: dict[str, set[str]] = {}
    for run in runs:
        if model := identity(run, "model"):
            seeds.setdefault(str(model), set()).add(init_seed(run))
    if len(seeds) == 1 and len(*seeds.values()) > 1:
        yield (
            "One start model and one training set for all seeds: the intervals cover the order of the batches and what "
            "the methods draw, not another start model or other data."
        )


def _least(orders: int, runs: Sequence[Record], size: int) -> str:
    """How large a difference must be to be claimed; "" where none can be."""
    n, unit = (orders, "orders") if orders > 1 else (len({str(r.get("seed")) for r in runs}), "seeds")
    if n < ENOUGH:
        return ""
    least = f"{claimed(n, size):.1f} standard deviations of the paired differences"
    return f", with {n} {unit} from {least} on (what is not told apart is not shown to be alike)"


def _missing(records: Sequence[Record]) -> Iterator[str]:
    missing = sum(r.get("status") != "finished" for r in records)
    if missing:
        yield f"{missing} of {len(records)} runs did not finish: means are over those that did, which may be the lucky ones."


def _data(runs: Sequence[Record], lower: bool) -> Iterator[str]:
    for key, text in COUNTS:
        most, run = max(((_count(r, key), r) for r in runs), key=lambda pair: pair[0])
        if most:
            asked = sum(n for row in (run.get("matrix") or ()) for n, cell in zip(
                run.get("examples_scored") or (), row, strict=False) if isinstance(cell, (int, float)))  # fmt: skip
            share = f" ({100 * most / asked:.2g}% of the answers)" if asked and key == "cut_answers" else ""
            yield f"In a run {amount(most)}{share} {text}."
    size = min((n for r in runs for n in r.get("examples_scored") or () if n), default=SMALL)
    if size < SMALL and not lower:
        yield f"The smallest test set has {size} examples: one answer moves its score by {1 / size:.2g}."


def _count(record: Record, key: str) -> float:
    """A number of the record, or the sum of numbers per task."""
    found = record.get(key)
    parts = found.values() if isinstance(found, Mapping) else [found]
    return sum(v for v in parts if isinstance(v, (int, float)))


def _noted(comparison: Comparison) -> Iterator[str]:
    """What the runs have noted, such as rows that are trained on and scored, and who has, where not all have."""
    found: dict[str, dict[str, None]] = {}
    for method, runs in comparison.methods.items():
        for note in (note for run in runs for note in run.get("notes") or ()):
            found.setdefault(str(note), {})[method] = None
    for note, methods in found.items():
        yield f"{note}." if len(methods) == len(comparison.methods) else f"{', '.join(methods)}: {note}."


def _budgets(comparison: Comparison) -> Iterator[str]:
    """What methods are not given equally. A reference is an upper bound only of methods that train on no more rows than it
    does."""
    if said := budgets.uneven(budgets.given(comparison)):
        yield said
    rows = {m: mean(runs, "cost.examples") for m, runs in comparison.methods.items()}
    rivals = [m for m in rows if comparison.regime(m)["is_method"] and rows[m] > 0]
    for method in rows:
        if comparison.regime(method)["upper_bound"] and rivals and not math.isnan(rows[method]):
            most = max(rivals, key=rows.__getitem__)
            if rows[most] > 1.05 * rows[method]:
                yield (
                    f"{method} was trained on {amount(rows[method])} rows, {most} on {amount(rows[most])}: at fewer rows "
                    f"{method} is no upper bound."
                )
