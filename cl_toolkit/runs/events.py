"""What a run tells while it runs. The log on disk, the progress bar and trackers are listeners; only plain data leaves."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cl_toolkit.runs.record import now


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened. fraction: the share of the run that is done; -1 where the event says nothing about it."""

    name: ClassVar[str] = ""
    fraction: float = -1.0

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return {"event": self.name, **vars(self)}


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """The run begins. method, seed: which one. config: its settings."""

    name = "start"
    method: str
    seed: Any
    config: Mapping[str, Any]
    fraction: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """A sentence for the user."""

    name = "note"
    text: str


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """It goes on after so many stages."""

    name = "resumed"
    after: int


@dataclass(frozen=True, kw_only=True)
class TaskBegan(Event):
    """A stage begins to be learned; its adapter is there. index: from 0."""

    name = "task_began"
    task: str
    index: int
    of: int


@dataclass(frozen=True, kw_only=True)
class Stepped(Event):
    """An optimizer step that is logged. step: of the whole run. losses: the terms by name. learning_rate: of this step.
    seconds: of training so far, by the processor or the GPU."""

    name = "step"
    task: str
    step: int
    losses: Mapping[str, float]
    learning_rate: float
    grad_norm: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Scored(Event):
    """A row of the matrix: task -> score. step: of the whole run."""

    name = "scored"
    row: int
    step: int
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Measured(Event):
    """Rows of a probe."""

    name = "measured"
    probe: str
    step: int
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Learned(Event):
    """A stage is learned; its adapter is still there."""

    name = "learned"
    task: str
    index: int


@dataclass(frozen=True, kw_only=True)
class TaskEnded(Event):
    """A stage is over: its adapter has been merged or kept, its row is filled, its checkpoint is on disk. cost: of the run so
    far."""

    name = "task_ended"
    task: str
    index: int
    step: int
    cost: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """A checkpoint after so many stages is on disk."""

    name = "saved"
    after: int


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The run is over. step: of the whole run."""

    name = "finished"
    step: int
    metrics: Mapping[str, float | None]
    cost: Mapping[str, Any]
    fraction: float = 1.0


Listener = Callable[[Event], None]


class Events:
    """Tells every listener of every event."""

    def __init__(self, *listeners: Listener | None):
        self.listeners = [listener for listener in listeners if listener is not None]

    def __call__(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)


class Log:
    """A listener that appends events to a file, a JSON object a line."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, event: Event) -> None:
        with contextlib.suppress(OSError):  # a log never ends a run
            append(self.path, json.dumps({"time": now(), **event.plain()}) + "\n")


def append(path: Path, text: str) -> None:
    """Text at the end of a file, which is not a link to another place."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        file.write(text)
