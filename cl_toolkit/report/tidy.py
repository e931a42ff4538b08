"""Records as tidy tables: a row per observation, the same names for the same things in each.

Every table begins with `method`, `order` and `seed`, which name the run (but that of fits, which are of methods); a seed of
several parts is text, `0-1-2-3`. `row` counts the rows of the accuracy matrix, 0 before training; `after` is the task that was
trained last then, "" in row 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd

from cl_toolkit.report.autopsy import rows as found_by_autopsy
from cl_toolkit.report.fits import Fit, fits
from cl_toolkit.report.forgetting import retained
from cl_toolkit.report.methods import by_method
from cl_toolkit.report.reading import Record, guessing, lookup, number, objective, one_level, scores
from cl_toolkit.runs.record import read_answers, run_folder

RUN = ("method", "order", "seed")
RUNS = (
    *RUN,
    "status",
    "regime",
    "objective",
    "strategies",
    "model",
    "tasks",
    "started",
    "finished",
    "commit",
    "folder",
    "error",
)
MATRIX = (*RUN, "row", "after", "task", "score", "chance", "unit", "higher_is_better", "examples")
ANSWERS = (*RUN, "row", "after", "task", "id", "question", "target", "answer", "score")
COSTS = (*RUN, "cost", "value", "compute_unit")
RETENTION = (*RUN, "task", "lag", "score", "share", "between")
AUTOPSY = (
    *RUN,
    "row",
    "after",
    "task",
    "strict",
    "content",
    "valid",
    "reminded",
    "drop",
    "superficial",
    "essential",
    "n",
)
FITS = ("method", "task", *(f.name for f in fields(Fit)))


def table(rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """The rows with these columns in this order, which an empty table has too."""
    return pd.DataFrame(list(rows), columns=list(columns))


def run_of(record: Record) -> dict[str, Any]:
    """What names a run in every table."""
    seed = record["seed"] if isinstance(record["seed"], int) else run_folder(record).rpartition("-s")[2]
    return {"method": record["method"], "order": record["order"], "seed": seed}


def finished(records: Sequence[Record]) -> list[Record]:
    """The runs that have results."""
    return [record for record in records if record["status"] == "finished"]


def after(record: Record, row: int) -> str:
    """The task that was trained last when a row of the matrix was filled."""
    return record["tasks"][row - 1] if row else ""


def runs(records: Sequence[Record], places: Sequence[Path]) -> pd.DataFrame:
    """A row per run, failed ones too. strategies: their names with + between, "" for none. tasks: how many. started, finished:
    UTC. commit: of the toolkit. folder: where the run lies. error: why it failed."""
    rows = (
        run_of(record)
        | {
            "status": record["status"],
            "regime": lookup(record, "regime.name"),
            "objective": objective(record),
            "strategies": "+".join(lookup(record, "config.strategies") or ()),
            "model": lookup(record, "config.model.name"),
            "tasks": len(record.get("tasks") or ()),
            **{key: lookup(record, f"provenance.{key}") for key in ("started", "finished", "commit")},
            "folder": str(place),
            "error": record.get("error"),
        }
        for record, place in zip(records, places, strict=True)
    )
    return table(rows, RUNS)


def matrix(records: Sequence[Record]) -> pd.DataFrame:
    """A row per cell of the accuracy matrices. score: in `unit`, NaN where it was not evaluated by plan. chance: the score of
    pure guessing then, NaN where it is not known. examples: how many the score is over."""
    rows = (
        run_of(record)
        | {"row": row, "after": after(record, row), "task": task, "score": values[row, i], "chance": chances[row, i]}
        | {
            name: record[key][i]
            for name, key in (("unit", "units"), ("higher_is_better",) * 2, ("examples", "examples_scored"))
        }
        for record in finished(records)
        for values, chances in [(scores(record["matrix"]), guessing(record))]
        for row in range(len(values))
        for i, task in enumerate(record["tasks"])
    )
    return table(rows, MATRIX)


def answers(records: Sequence[Record], places: Sequence[Path]) -> pd.DataFrame:
    """A row per question and row of the matrix: what the model said, and its score. Files that are gone or were edited, which
    `study.notes` names, are left out."""
    rows = (
        run_of(record) | {"row": row, "after": after(record, row)} | said
        for record, place in zip(records, places, strict=True)
        if record["status"] == "finished"
        for row in range(len(record["matrix"]))
        for said in read_answers(place, row, record.get("answers") or {})
    )
    return table(rows, ANSWERS)


def costs(records: Sequence[Record]) -> pd.DataFrame:
    """A row per run and cost: counts (`steps`, `tokens`, `forwards`, ...), bytes and seconds (`compute_seconds_train`, ...), by
    the names of summary.csv. compute_unit: what compute seconds are of, `CPU s` or `GPU s`."""
    rows = (
        run_of(record)
        | {"cost": name, "value": number(flat, name), "compute_unit": lookup(record, "cost.compute_unit")}
        for record in finished(records)
        for flat in [one_level(record["cost"], "_")]
        for name, value in flat.items()
        if not isinstance(value, str)
    )
    return table(rows, COSTS)


def retention(records: Sequence[Record]) -> pd.DataFrame:
    """A row per run, task and lag within the task's curve: score and share of what is left (`forgetting.Retained`)."""
    rows = (run_of(record) | asdict(found) for record in finished(records) for found in retained(record))
    return table(rows, RETENTION)


def fitted(records: Sequence[Record]) -> pd.DataFrame:
    """A row per method and task whose forgetting curve is described by a power law or an exponential (`fits.Fit`), over all
    its orders and seeds."""
    tasks = list(dict.fromkeys(task for record in finished(records) for task in record["tasks"]))
    found = fits(by_method(records), tasks)
    return table(({"method": m, "task": task, **asdict(fit)} for (m, task), fit in found.items()), FITS)


def autopsy(records: Sequence[Record]) -> pd.DataFrame:
    """A row per run, stage and task learned so far that the probe `autopsy` has looked at: its scores, and what they have lost
    since the task's own end, drop = superficial + essential."""
    rows = (
        run_of(record) | {"after": row["trained"], "task": row["scored"]} | {k: row[k] for k in AUTOPSY if k in row}
        for record in finished(records)
        for row in found_by_autopsy(record)
    )
    return table(rows, AUTOPSY)
