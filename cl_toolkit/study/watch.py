"""How far a comparison is, read from its folder alone: for one who comes to it later, or from another machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from cl_toolkit.errors import UserError
from cl_toolkit.study.members import MEMBERS, read_members

TAIL = 2**16
"""Bytes of a run's events that are read: some hundred steps."""
SILENT = 600
"""Seconds after which a run that says nothing is no longer counted as one that goes on (ours)."""
State = Literal["waiting", "running", "silent", "failed", "finished"]


@dataclass(frozen=True)
class RunState:
    """Where a run stands. done: the share of it. pace: that share per second, by what it has said last; None: not known."""

    run: str
    state: State
    done: float = 0.0
    task: str = ""
    step: int | None = None
    pace: float | None = None


def standings(folder: Path, now: datetime) -> list[RunState]:
    """Of every run of the comparison in a folder, in its order. Raises UserError where there is none."""
    members = read_members(folder)
    if members is None:
        raise UserError(f"{folder}: expected the folder of a comparison, with {MEMBERS}; cl-toolkit compare makes one")
    return [standing(run, folder / "runs" / run, now) for run in members["runs"]]


def standing(run: str, place: Path, now: datetime) -> RunState:
    """Of one run."""
    events = said(place / "events.jsonl")
    if not events:
        return RunState(run, "failed" if failed(place, 0.0) else "waiting")
    last, steps = events[-1], [e for e in events if e["event"] == "step"]
    if last["event"] == "finished":
        return RunState(run, "finished", 1.0)
    age = (now - time_of(last)).total_seconds()
    state: State = "silent" if age > SILENT else "running"
    if failed(place, (place / "events.jsonl").stat().st_mtime):
        state = "failed"
    done = max((e["fraction"] for e in events[-1:] + steps[-1:]), default=0.0)
    task, step = (steps[-1]["task"], steps[-1]["step"]) if steps else ("", None)
    return RunState(run, state, max(done, 0.0), task, step, pace(events))


def said(path: Path) -> list[dict[str, Any]]:
    """The last events of a run; those that are cut off, at either end, are left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    found = []
    for line in lines[1:] if size > TAIL else lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and {"event", "time", "fraction"} <= event.keys():
            found.append(event)
    return found


def time_of(event: Mapping[str, Any]) -> datetime:
    """When it happened."""
    return datetime.fromisoformat(event["time"])


def pace(events: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of the run per second over what was said last, from where it began or went on."""
    begun = max((i for i, e in enumerate(events) if e["event"] in ("start", "resumed")), default=0)
    told = [e for e in events[begun:] if e["fraction"] >= 0]
    if len(told) < 2:
        return None
    seconds = (time_of(told[-1]) - time_of(told[0])).total_seconds()
    share = told[-1]["fraction"] - told[0]["fraction"]
    return share / seconds if seconds > 0 and share > 0 else None


def failed(place: Path, after: float) -> bool:
    """Whether a run's record says that it failed, and nothing has happened since."""
    path = place / "record.json"
    try:
        return path.stat().st_mtime >= after and json.loads(path.read_text(encoding="utf-8"))["status"] == "failed"
    except (OSError, ValueError, KeyError):
        return False


def seconds_left(rows: Sequence[RunState]) -> float | None:
    """Until all are done, with as many at a time as now and each as fast as those that go on; None where nothing goes on, or it
    has said too little."""
    paces = [row.pace for row in rows if row.state == "running" and row.pace]
    left = sum(1 - row.done for row in rows if row.state in ("running", "waiting", "silent"))
    return left / sum(paces) if paces else None
