"""Reading one run record, and what several have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cl_toolkit.errors import UserError
from cl_toolkit.measure.metrics import NOT_EVALUATED, explain
from cl_toolkit.runs.record import SCHEMA_VERSION

Record = Mapping[str, Any]


def trusted(record: Record) -> Record:
    """The record with the metrics of its matrix: what it says itself of them is not believed. Raises UserError where the
    record is of another schema, or a finished one has no whole matrix or no regime."""
    place = f"{record.get('method')}/{record.get('order')}-s{record.get('seed')}"
    if record.get("schema_version") != SCHEMA_VERSION:
        found = record.get("schema_version")
        raise UserError(f"{place}: schema_version is {found!r}; this version reads {SCHEMA_VERSION}")
    if record.get("status") != "finished":
        return record
    if not isinstance(record.get("regime"), Mapping):
        raise UserError(f"{place}: has no regime; the record is damaged, run it anew")
    try:
        metrics, reasons = explain(record["matrix"], record.get("higher_is_better") or ())
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{place}: matrix: {error}; the record is damaged, run it anew") from error
    said = record.get("undefined") or {}
    return {**record, "metrics": metrics, "undefined": {k: said.get(k, reason) for k, reason in reasons.items()}}


def lookup(record: Record, path: str) -> Any:
    """The value at a dotted path, `config.model.adapter.between_tasks`; None where any part is absent or None."""
    value: Any = record
    for key in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def number(record: Record, path: str) -> float:
    """The finite number at a dotted path, NaN where there is none: undefined is never 0."""
    value = lookup(record, path)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and np.isfinite(value) else float("nan")


def one_level(tree: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Nested mappings as one level; lists and empty mappings become JSON text."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}{separator}{k}": v for k, v in one_level(value, separator).items()}
        else:
            flat[str(key)] = json.dumps(value, ensure_ascii=False) if isinstance(value, (list, tuple, dict)) else value
    return flat


def scores(matrix: Sequence[Sequence[float | str | None]]) -> np.ndarray:
    """The matrix as floats, NaN where a cell was not evaluated."""
    return np.array([[np.nan if c in (NOT_EVALUATED, None) else float(c) for c in row] for row in matrix], dtype=float)


def guessing(record: Record) -> np.ndarray:
    """The scores of pure guessing in the shape of the matrix, NaN where a cell is not known; all of them where `chance`
    has another shape than `matrix`."""
    shape, rows = scores(record["matrix"]).shape, record.get("chance") or ()
    known = len(rows) == shape[0] and all(isinstance(row, (list, tuple)) and len(row) == shape[1] for row in rows)
    return scores(rows) if known else np.full(shape, np.nan)


def chance(record: Record) -> float:
    """Mean score of pure guessing over all tasks at the end; NaN where it is not known for all of them."""
    return float(guessing(record)[-1].mean())


def lower_is_better(records: Sequence[Record]) -> bool:
    """Whether of every task's score less is better."""
    return {higher for r in records for higher in r.get("higher_is_better") or ()} == {False}


def unit(records: Sequence[Record]) -> str:
    """What their scores are called: `accuracy`; `score` where tasks have several units."""
    units = {u for r in records for u in r.get("units") or ()}
    return str(*units) if len(units) == 1 else "score"


def life_cycle(record: Record) -> str | None:
    """What happens to the adapter between tasks; None when all weights are trained."""
    adapter = lookup(record, "config.model.adapter")
    return adapter.get("between_tasks", "continue") if isinstance(adapter, Mapping) else None


def objective(record: Record) -> str:
    """Name of the objective."""
    return lookup(record, "config.objective.name") or ""


def is_method(record: Record) -> bool:
    """Whether a run goes through its tasks in a way that can win or lose; others are references."""
    return lookup(record, "regime.is_method") is not False


def has_no_strategy(record: Record) -> bool:
    """Whether nothing is done against forgetting."""
    return not lookup(record, "config.strategies")
