"""Reading run records: which runs count, in what order methods come, what is the control of a method."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cl_toolkit.errors import UserError
from cl_toolkit.metrics import NOT_EVALUATED, explain
from cl_toolkit.record import SCHEMA_VERSION

Record = Mapping[str, Any]


def trusted(record: Record) -> Record:
    """The record with the metrics of its matrix: what it says itself of them is not believed. Raises UserError where the
    record is of another schema or a finished one has no whole matrix."""
    place = f"{record.get('method')}/{record.get('order')}-s{record.get('seed')}"
    if record.get("schema_version") != SCHEMA_VERSION:
        found = record.get("schema_version")
        raise UserError(f"{place}: schema_version is {found!r}; this version reads {SCHEMA_VERSION}")
    if record.get("status") != "finished":
        return record
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


def flatten(tree: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Nested mappings as one level; lists and empty mappings become JSON text."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}{separator}{k}": v for k, v in flatten(value, separator).items()}
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
    return lookup(record, "config.objective.name") or "sft"


def is_method(record: Record) -> bool:
    """Whether a run goes through its tasks in a way that can win or lose; others are references."""
    return lookup(record, "regime.is_method") is not False


def is_bare(record: Record) -> bool:
    """One task after the other, and nothing done against forgetting."""
    return is_method(record) and not lookup(record, "config.strategies")


def is_control(record: Record) -> bool:
    """Bare supervised fine-tuning."""
    return is_bare(record) and objective(record) == "sft"


def ordered(records: Sequence[Record]) -> list[Record]:
    """Controls first, then methods by name, then the views that are not a method (joint and the like); within a method
    by order and seed. So neither colours nor bytes depend on the order in which files were found."""

    def key(record: Record) -> tuple:
        seed = str(record.get("seed"))
        known = "config" in record
        group = 0 if known and is_control(record) else 1 if is_method(record) else 2
        return group, str(record.get("method")), str(record.get("order")), len(seed), seed

    return sorted(records, key=key)


def by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Method -> its finished runs, in the order of `ordered`, with the metrics of their matrices (`trusted`)."""
    groups: dict[str, list[Record]] = {}
    for record in ordered([r for r in records if r.get("status") == "finished"]):
        groups.setdefault(str(record["method"]), []).append(trusted(record))
    return groups


def control_of(method: str, groups: Mapping[str, Sequence[Record]]) -> tuple[str | None, str]:
    """The control's name (None without one), and what about it is not as it should be ("" when all is).

    It has no strategies and trains one task after the other, with the same objective and adapter life cycle; a bare
    method with another objective is compared with supervised fine-tuning. Of several, the one with the fewest other
    settings.
    """
    own = groups[method][0]
    wanted = "sft" if is_bare(own) else objective(own)
    bare = [m for m, runs in groups.items() if m != method and is_bare(runs[0])]
    same_objective = [m for m in bare if objective(groups[m][0]) == wanted]
    matching = [m for m in same_objective if life_cycle(groups[m][0]) == life_cycle(own)]
    candidates = matching or [m for m in bare if is_control(groups[m][0])]
    if not candidates:
        return None, ""
    settings = flatten(own.get("config", {}))

    def differing(name: str) -> int:
        other = flatten(groups[name][0].get("config", {}))
        return sum(settings.get(k) != other.get(k) for k in settings.keys() | other.keys())

    missing = [] if same_objective else ["objective"]
    missing += [] if matching or not same_objective else ["adapter life cycle"]
    caveat = f"No control with the same {' and '.join(missing)} was run." if missing else ""
    return min(candidates, key=lambda name: (differing(name), name)), caveat
