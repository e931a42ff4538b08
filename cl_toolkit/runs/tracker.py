"""What a tracker is: a listener that gets numbers by name. Only numbers and settings leave the run."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cl_toolkit.errors import UserError
from cl_toolkit.runs.events import Event, Finished, Measured, Scored, Stepped, TaskEnded


@dataclass(frozen=True)
class Place:
    """Where a tracker may write, and what the run is called. config: the run's plain settings."""

    folder: Path
    study: str
    run: str
    config: Mapping[str, Any]


class Tracker:
    """Hands numbers on. Settings are a keyword-only frozen dataclass `Config` inside the class. It is made when a run begins
    or goes on, and closed when it ends, also by an error. It changes no number of the run, and its settings are no part of
    what a result is known by."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings with their defaults. A plain tracker has none."""

    def __init__(self, config: Any = None):
        self.config: Any = self.Config() if config is None else config

    def open(self, place: Place) -> None:
        """Begin, before anything is trained. Raises UserError where it cannot."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Take numbers. step: optimizer steps of the whole run."""
        raise NotImplementedError

    def close(self) -> None:
        """The run is over, or has failed."""

    def __call__(self, event: Event) -> None:
        found = numbers(event)
        if found:
            self.log(found, getattr(event, "step", 0))


def numbers(event: Event) -> dict[str, float]:
    """The finite numbers of an event, by names with / between their parts; {} for an event without any."""
    given: dict[str, Any]
    if isinstance(event, Stepped):
        given = {f"loss/{name}": value for name, value in event.losses.items()}
        given |= {"learning_rate": event.learning_rate, "grad_norm": event.grad_norm, "seconds": event.seconds}
    elif isinstance(event, Scored):
        given = {f"score/{task}": value for task, value in event.scores.items()}
    elif isinstance(event, Measured):
        given = {f"{event.probe}/{name}": value for row in event.rows for name, value in of_row(row).items()}
    elif isinstance(event, TaskEnded):
        given = {f"cost/{name}": value for name, value in event.cost.items()}
    elif isinstance(event, Finished):
        given = {f"metric/{name}": value for name, value in event.metrics.items()}
    else:
        given = {}
    return {name: float(value) for name, value in given.items() if is_number(value)}


def of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a probe's row measures: `value` goes by the task that was scored; where and when are no measurements."""
    if "scored" in row and "value" in row:
        return {row["scored"]: row["value"]}
    return {name: value for name, value in row.items() if name not in ("step", "row", "examples_seen")}


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def needed(module: str, tracker: str, package: str) -> ModuleType:
    """A module of another package; UserError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"trackers.{tracker}: needs the package {package}: pip install 'cl-toolkit[{tracker}]' ({error})"
        ) from error
