"""Records as tables: a row per run, a row per method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cl_toolkit.report.likeness import check_unmixed
from cl_toolkit.report.records import Record, by_method, flatten, lookup, lower_is_better, number, ordered, trusted


@dataclass(frozen=True)
class Metric:
    """A number of a run: where it stands in the record, what it means, who defined it.

    higher_is_better: None where neither is. score: in the unit of the scores, so that its direction follows the scorer.
    ranked: a column of the ranking.
    """

    key: str
    path: str
    label: str
    definition: str
    higher_is_better: bool | None
    source: str
    score: bool = True
    ranked: bool = True


METRICS: tuple[Metric, ...] = (
    Metric("acc", "metrics.acc", "ACC", "Mean score over all T tasks after the last one was learned.",
           True, "Lopez-Paz & Ranzato 2017; divided by T"),
    Metric("bwt", "metrics.bwt", "BWT",
           "Backward transfer: score at the end minus score right after learning, mean over all tasks but the last. "
           "Below 0 is forgetting.", True, "Lopez-Paz & Ranzato 2017; divided by T - 1"),
    Metric("forgetting", "metrics.forgetting", "Forgetting",
           "Best score before the last task minus score at the end, mean over all tasks but the last.",
           False, "Chaudhry et al. 2018; divided by T - 1"),
    Metric("learning_accuracy", "metrics.learning_accuracy", "Learning acc.",
           "Mean score of each task right after it was learned.", True, "Riemer et al. 2019; divided by T"),
    Metric("fwt", "metrics.fwt", "FWT",
           "Forward transfer: score just before a task is learned minus score of the untrained model, mean over all "
           "tasks but the first.", True, "Lopez-Paz & Ranzato 2017; divided by T - 1"),
    Metric("tokens", "cost.tokens", "Tokens", "Tokens trained on, rehearsed ones included.",
           False, "counted", score=False),
    Metric("forwards", "cost.forwards", "Forwards", "Passes forward while training, those of strategies and rollouts too.",
           False, "counted", score=False),
    Metric("compute_seconds", "cost.compute_seconds.train", "Compute s",
           "Seconds of CPU or GPU spent training, without evaluation; which of the two stands in summary.csv.",
           False, "measured", score=False),
    Metric("stored_examples", "cost.stored_examples", "Stored ex.", "Training examples of past tasks that are kept.",
           False, "measured", score=False),
    Metric("steps", "cost.steps", "Steps", "Optimizer steps.", False, "counted", score=False, ranked=False),
    Metric("examples", "cost.examples", "Rows", "Rows trained on, rehearsed ones included, rollouts not.",
           False, "counted", score=False, ranked=False),
    Metric("average_incremental_accuracy", "metrics.average_incremental_accuracy", "Avg. incremental",
           "After each task the mean score over the tasks seen so far; mean of these.",
           True, "divided by T", ranked=False),
    Metric("bwt_gem", "metrics.bwt_gem", "BWT / T", "BWT as the GEM repository computes it.",
           True, "divided by T", ranked=False),
    Metric("fwt_gem", "metrics.fwt_gem", "FWT / T", "FWT as the GEM repository computes it.",
           True, "divided by T", ranked=False),
    Metric("forgetting_mammoth", "metrics.forgetting_mammoth", "Forgetting, Mammoth",
           "Forgetting whose best score may be the final one, so never below 0.",
           False, "divided by T - 1", ranked=False),
    Metric("forgetting_avalanche", "metrics.forgetting_avalanche", "Forgetting, Avalanche",
           "First score after learning minus the last: -BWT.", False, "divided by T - 1", ranked=False),
)  # fmt: skip
RANKED = tuple(m for m in METRICS if m.ranked)
RUN = {"method": "method", "seed": "seed", "order": "order", "regime": "regime.name", "status": "status"}
"""What a run was: column -> where it stands in the record."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet read a cell as a formula."""


def direction(metric: Metric, records: Sequence[Record]) -> bool | None:
    """Whether more is better, for the scorer of these records. Chaudhry's maximum has no meaning for a perplexity."""
    if metric.score and lower_is_better(records):
        return not metric.higher_is_better if metric.higher_is_better else None
    return metric.higher_is_better


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
        for metric in METRICS:
            values = np.array([number(r, metric.path) for r in runs])
            values = values[~np.isnan(values)]
            row[metric.key] = float(values.mean()) if len(values) else math.nan
            row[f"{metric.key}_spread"] = float(values.std(ddof=1)) if len(values) > 1 else math.nan
            row[f"{metric.key}_n"] = len(values)
        rows[method] = row
    columns = ["runs", *(m.key + suffix for m in METRICS for suffix in ("", "_spread", "_n"))]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("method")
    return table.sort_values("acc", ascending=lower_is_better(records), na_position="last", kind="stable")


def ranking_rows(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """The ranking for a terminal: headers with the direction (`ACC ^`), rows such as `["replay", "3", "0.61 ± 0.03"]`.

    The second column is the number of runs; a score that rests on fewer says so: `0.61 ± 0.03 (n=2)`. Costs are means alone.
    """
    arrows = {True: " ^", False: " v", None: ""}
    headers = ["Method", "n", *(m.label + arrows[direction(m, records)] for m in RANKED)]
    table = ranking(records)
    rows = [[method, str(int(row["runs"])), *(_brief(row, m) for m in RANKED)] for method, row in table.iterrows()]
    return headers, rows


def _brief(row: pd.Series, metric: Metric) -> str:
    if metric.score:
        return cell(row, metric)
    return amount(row[metric.key]) if row[f"{metric.key}_n"] else "-"


def cell(row: pd.Series, metric: Metric) -> str:
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
