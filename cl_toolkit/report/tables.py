"""A comparison as tables: a row per run, a row per method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import pandas as pd

from cl_toolkit.report.columns import RANKED, Column, amount, cell, more_is_better
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.reading import Record, lookup, one_level

RUN = {"method": "method", "seed": "seed", "order": "order", "regime": "regime.name", "status": "status"}
"""What a run was: column -> where it stands in the record."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet read a cell as a formula."""


def per_run(records: Sequence[Record]) -> pd.DataFrame:
    """A row per run, failed ones too: what it was, every metric, every cost (`compute_seconds_train`,
    `wall_seconds_train`, ...)."""
    rows = [
        {key: lookup(record, path) for key, path in RUN.items()}
        | one_level(record.get("metrics") or {}, "_")
        | one_level(record.get("cost") or {}, "_")
        | {"error": record.get("error")}
        for record in records
    ]
    return pd.DataFrame(rows)


def as_csv(table: pd.DataFrame) -> str:
    """The table as CSV text. Text that a spreadsheet would take for a formula begins with an apostrophe; numbers do not."""
    return table.rename(columns=_plain).map(_plain).to_csv(index=False)


def _plain(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def ranking_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The ranking for a terminal: headers with the direction (`ACC ^`), rows such as `["replay", "3", "0.61 ± 0.03"]`.

    The second column is the number of runs; a score that rests on fewer says so: `0.61 ± 0.03 (n=2)`. Costs are means alone.
    """
    arrows = {True: " ^", False: " v"}
    headers = ["Method", "n", *(c.label + arrows[more_is_better(c, comparison.lower)] for c in RANKED)]
    rows = [
        [method, str(int(row["runs"])), *(_brief(row, c) for c in RANKED)]
        for method, row in comparison.ranking.iterrows()
    ]
    return headers, rows


def _brief(row: pd.Series, column: Column) -> str:
    if column.score:
        return cell(row, column)
    return amount(row[column.key]) if row[f"{column.key}_n"] else "-"


def undefined(comparison: Comparison) -> list[tuple[str, str, str]]:
    """(method, labels of its undefined metrics, reason), so that no dash in the ranking stays unexplained."""
    notes: dict[tuple[str, str], list[str]] = {}
    for method, runs in comparison.methods.items():
        for column in RANKED:
            for run in runs:
                reason = lookup(run, f"undefined.{column.key}")
                labels = notes.setdefault((method, str(reason)), []) if reason else []
                if column.label not in labels:
                    labels.append(column.label)
    return [(method, ", ".join(labels), reason) for (method, reason), labels in notes.items()]


def told(comparison: Comparison) -> list[dict[str, str]]:
    """What strategies have noted as numbers: a row per method and number, with its mean over runs after each task in trained
    order ("-" where none was noted)."""
    rows = []
    for method, runs in comparison.methods.items():
        noted = [[one_level(stage.get("told") or {}) for stage in run.get("adapters") or ()] for run in runs]
        for key in dict.fromkeys(k for run in noted for stage in run for k, v in stage.items() if _is_number(v)):
            row = {"Method": method, "What": key}
            for k, stages in enumerate(zip_longest(*noted, fillvalue={}), 1):
                values = [stage[key] for stage in stages if _is_number(stage.get(key))]
                row[f"Task {k}"] = amount(sum(values) / len(values)) if values else "-"
            rows.append(row)
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
