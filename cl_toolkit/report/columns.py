"""The numbers of a run that a report shows: what each means, and their means per method."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cl_toolkit.measure.metrics import METRICS
from cl_toolkit.report.methods import Methods
from cl_toolkit.report.reading import number


@dataclass(frozen=True)
class Column:
    """A number of a run in a table: where it stands in the record, what it means, how it is known.

    follows_scores: in the direction of the scores; of any other less is better. score: in the unit of the scores. ranked: a
    column of the ranking.
    """

    key: str
    path: str
    label: str
    definition: str
    source: str
    follows_scores: bool = False
    score: bool = False
    ranked: bool = True


OF_SCORES = [
    Column(m.key, f"metrics.{m.key}", m.label, m.definition, m.source, m.follows_scores, True, m.headline)
    for m in METRICS.values()
]
COSTS = [
    Column("tokens", "cost.tokens", "Target tok.", "Tokens that are learned, rehearsed ones included, those of prompts not.",
           "counted"),
    Column("forwards", "cost.forwards", "Forwards",
           "Passes forward in training steps, those of strategies and rollouts too; of passes between tasks the seconds alone.",
           "counted"),
    Column("compute_seconds", "cost.compute_seconds.train", "Compute s",
           "Seconds of CPU or GPU spent training, without evaluation; which of the two stands in summary.csv.", "measured"),
    Column("stored_examples", "cost.stored_examples", "Stored ex.", "Training examples of past tasks that are kept.",
           "measured"),
    Column("steps", "cost.steps", "Steps", "Optimizer steps.", "counted", ranked=False),
    Column("new_examples", "cost.new_examples", "New ex.", "Rows trained on that are of the task at hand.", "counted",
           ranked=False),
    Column("examples", "cost.examples", "Rows", "Rows trained on, rehearsed ones included, rollouts not.", "counted",
           ranked=False),
]  # fmt: skip
COLUMNS = (*(c for c in OF_SCORES if c.ranked), *COSTS, *(c for c in OF_SCORES if not c.ranked))
RANKED = tuple(c for c in COLUMNS if c.ranked)


def more_is_better(column: Column, lower: bool) -> bool:
    """Whether more is better. lower: of the scores less is."""
    return column.follows_scores and not lower


def ranking(methods: Methods, lower: bool) -> pd.DataFrame:
    """A row per method, best ACC first, methods without it last. Indexed by method; `runs`, and for each column `<key>`
    (mean over runs), `<key>_spread` (sample standard deviation, NaN for one run), `<key>_n` (runs that have it)."""
    rows = {}
    for method, runs in methods.items():
        row: dict[str, float] = {"runs": len(runs)}
        for column in COLUMNS:
            values = np.array([number(r, column.path) for r in runs])
            values = values[~np.isnan(values)]
            row[column.key] = float(values.mean()) if len(values) else math.nan
            row[f"{column.key}_spread"] = float(values.std(ddof=1)) if len(values) > 1 else math.nan
            row[f"{column.key}_n"] = len(values)
        rows[method] = row
    names = ["runs", *(c.key + suffix for c in COLUMNS for suffix in ("", "_spread", "_n"))]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=names).rename_axis("method")
    return table.sort_values("acc", ascending=lower, na_position="last", kind="stable")


def cell(row: pd.Series, column: Column) -> str:
    """One cell of the ranking: mean, spread where there are several runs, n where it is not that of the row."""
    n, mean, spread = int(row[f"{column.key}_n"]), row[column.key], row[f"{column.key}_spread"]
    if not n:
        return "-"
    if column.score:
        text = f"{mean:.2f} ± {spread:.2f}" if n > 1 else f"{mean:.2f}"
    else:
        places = max(0, min(2, 2 - len(f"{abs(mean):.0f}") + 1)) if mean % 1 else 0
        text = f"{mean:,.{places}f} ± {spread:,.{places}f}" if n > 1 and spread else f"{mean:,.{places}f}"
    return text + (f" (n={n})" if n != row["runs"] else "")


def amount(value: float) -> str:
    """A cost with three significant digits, thousands set apart: 0.42, 12.3, 1,540."""
    if abs(value) < 1e-9:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
