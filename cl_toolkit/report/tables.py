"""Records as tables: a row per run, a row per method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cl_toolkit.metrics import METRICS
from cl_toolkit.report.likeness import check_unmixed
from cl_toolkit.report.records import Record, by_method, flatten, lookup, lower_is_better, number, ordered, trusted


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
    Column("tokens", "cost.tokens", "Tokens", "Tokens trained on, rehearsed ones included.", "counted"),
    Column("forwards", "cost.forwards", "Forwards", "Passes forward while training, those of strategies and rollouts too.",
           "counted"),
    Column("compute_seconds", "cost.compute_seconds.train", "Compute s",
           "Seconds of CPU or GPU spent training, without evaluation; which of the two stands in summary.csv.", "measured"),
    Column("stored_examples", "cost.stored_examples", "Stored ex.", "Training examples of past tasks that are kept.",
           "measured"),
    Column("steps", "cost.steps", "Steps", "Optimizer steps.", "counted", ranked=False),
    Column("examples", "cost.examples", "Rows", "Rows trained on, rehearsed ones included, rollouts not.", "counted",
           ranked=False),
]  # fmt: skip
COLUMNS = (*(c for c in OF_SCORES if c.ranked), *COSTS, *(c for c in OF_SCORES if not c.ranked))
RANKED = tuple(c for c in COLUMNS if c.ranked)
RUN = {"method": "method", "seed": "seed", "order": "order", "regime": "regime.name", "status": "status"}
"""What a run was: column -> where it stands in the record."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet read a cell as a formula."""


def more_is_better(column: Column, lower: bool) -> bool:
    """Whether more is better. lower: of the scores less is."""
    return column.follows_scores and not lower


def summary(records: Sequence[Record]) -> pd.DataFrame:
    """A row per run, failed ones too: what it was, every metric, every cost (`compute_seconds_train`,
    `wall_seconds_train`, ...)."""
    rows = [
        {key: lookup(record, path) for key, path in RUN.items()}
        | flatten(record.get("metrics") or {}, "_")
        | flatten(record.get("cost") or {}, "_")
        | {"error": record.get("error")}
        for record in map(trusted, ordered(records))
    ]
    return pd.DataFrame(rows)


def as_csv(table: pd.DataFrame) -> str:
    """The table as CSV text. Text that a spreadsheet would take for a formula begins with an apostrophe; numbers do not."""
    return table.rename(columns=_plain).map(_plain).to_csv(index=False)


def _plain(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def ranking(records: Sequence[Record]) -> pd.DataFrame:
    """A row per method, best ACC first, methods without it last. Indexed by method; `runs`, and for each metric `<key>`
    (mean over runs), `<key>_spread` (sample standard deviation, NaN for one run), `<key>_n` (runs that have it). Raises
    UserError where runs of one method differ in more than seed and order."""
    check_unmixed(records)
    rows = {}
    for method, runs in by_method(records).items():
        row: dict[str, float] = {"runs": len(runs)}
        for metric in COLUMNS:
            values = np.array([number(r, metric.path) for r in runs])
            values = values[~np.isnan(values)]
            row[metric.key] = float(values.mean()) if len(values) else math.nan
            row[f"{metric.key}_spread"] = float(values.std(ddof=1)) if len(values) > 1 else math.nan
            row[f"{metric.key}_n"] = len(values)
        rows[method] = row
    columns = ["runs", *(m.key + suffix for m in COLUMNS for suffix in ("", "_spread", "_n"))]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("method")
    return table.sort_values("acc", ascending=lower_is_better(records), na_position="last", kind="stable")


def ranking_rows(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """The ranking for a terminal: headers with the direction (`ACC ^`), rows such as `["replay", "3", "0.61 ± 0.03"]`.

    The second column is the number of runs; a score that rests on fewer says so: `0.61 ± 0.03 (n=2)`. Costs are means alone.
    """
    arrows, lower = {True: " ^", False: " v"}, lower_is_better(records)
    headers = ["Method", "n", *(m.label + arrows[more_is_better(m, lower)] for m in RANKED)]
    table = ranking(records)
    rows = [[method, str(int(row["runs"])), *(_brief(row, m) for m in RANKED)] for method, row in table.iterrows()]
    return headers, rows


def _brief(row: pd.Series, metric: Column) -> str:
    if metric.score:
        return cell(row, metric)
    return amount(row[metric.key]) if row[f"{metric.key}_n"] else "-"


def cell(row: pd.Series, metric: Column) -> str:
    """One cell of the ranking: mean, spread where there are several runs, n where it is not that of the row."""
    n, mean, spread = int(row[f"{metric.key}_n"]), row[metric.key], row[f"{metric.key}_spread"]
    if not n:
        return "-"
    if metric.score:
        text = f"{mean:.2f} ± {spread:.2f}" if n > 1 else f"{mean:.2f}"
    else:
        places = max(0, min(2, 2 - len(f"{abs(mean):.0f}") + 1)) if mean % 1 else 0
        text = f"{mean:,.{places}f} ± {spread:,.{places}f}" if n > 1 and spread else f"{mean:,.{places}f}"
    return text + (f" (n={n})" if n != row["runs"] else "")


def undefined(records: Sequence[Record]) -> list[tuple[str, str, str]]:
    """(method, labels of its undefined metrics, reason), so that no dash in the ranking stays unexplained."""
    notes: dict[tuple[str, str], list[str]] = {}
    for method, runs in by_method(records).items():
        for metric in RANKED:
            for run in runs:
                reason = lookup(run, f"undefined.{metric.key}")
                labels = notes.setdefault((method, str(reason)), []) if reason else []
                if metric.label not in labels:
                    labels.append(metric.label)
    return [(method, ", ".join(labels), reason) for (method, reason), labels in notes.items()]


def amount(value: float) -> str:
    """A cost with three significant digits, thousands set apart: 0.42, 12.3, 1,540."""
    if abs(value) < 1e-9:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
