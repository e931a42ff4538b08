"""What a run tells while it runs: events on disk, and a listener for progress bars."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cl_toolkit.runs.record import now

Listener = Callable[[dict[str, Any]], None]


class Events:
    """Appends events to `events.jsonl` and hands them to a listener. `fraction` is the share of the run that is done."""

    def __init__(self, path: Path | None, listener: Listener | None = None):
        self.path, self.listener = path, listener

    def __call__(self, event: str, **fields: Any) -> None:
        row = {"time": now(), "event": event, **fields}
        if self.path is not None:
            with contextlib.suppress(OSError):  # a log never ends a run
                append(self.path, json.dumps(row) + "\n")
        if self.listener is not None:
            self.listener(row)


def append(path: Path, text: str) -> None:
    """Text at the end of a file, which is not a link to another place."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        file.write(text)
