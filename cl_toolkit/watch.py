"""What a run tells while it runs: events on disk, and a listener for progress bars."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cl_toolkit.record import now

Listener = Callable[[dict[str, Any]], None]


class Events:
    """Appends events to `events.jsonl` and hands them to a listener. `fraction` is the share of the run that is done."""

    def __init__(self, path: Path | None, listener: Listener | None = None):
        self.path, self.listener = path, listener

    def __call__(self, event: str, **fields: Any) -> None:
        row = {"time": now(), "event": event, **fields}
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if self.listener is not None:
            self.listener(row)


def last_event(path: Path) -> dict[str, Any] | None:
    """The newest event of a run that may still be writing; None before the first."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1])
    except (OSError, ValueError, IndexError):
        return None
