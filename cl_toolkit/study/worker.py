"""A process of a comparison: it runs one run after the other, as its parent tells it, and ends when its parent ends.

Jobs come as lines of JSON on standard input, what happens goes back as lines of JSON on what was standard output; whatever a
library prints goes to standard error. Guests' files are imported here, from their names.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_toolkit.runs.events import Listener


def main() -> None:
    """Serve the parent until it closes the line."""
    line = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        line.write(json.dumps(message) + "\n")
        line.flush()

    jobs: queue.Queue[dict[str, Any]] = queue.Queue()

    def listen() -> None:
        for text in sys.stdin:
            jobs.put(json.loads(text))
        os._exit(0)  # the parent has ended, or wants no more: what was begun goes on from its last checkpoint

    threading.Thread(target=listen, daemon=True).start()
    while True:
        send({"done": True, "error": work(jobs.get(), lambda event: send({"event": event.plain()}))})


def work(job: dict[str, Any], listener: Listener | None = None) -> str | None:
    """One run, as `Job.line` tells of it; the reason in one line if it failed."""
    from cl_toolkit.config.build import build_run
    from cl_toolkit.study.one import execute_run

    config = build_run(job["config"], job["where"], method=job["method"], order=job["order"])
    return execute_run(config, Path(job["place"]), listener, job["identity"], Path(job["shared"]))


if __name__ == "__main__":
    main()
