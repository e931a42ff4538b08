"""The runs of a comparison that somebody else runs: handed over so many at a time, watched, and handed over again if they died.
What is the same for Slurm, by submitit, and for Ray."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from cl_toolkit.study.watch import standing
from cl_toolkit.study.workers import Job, Say, Update

PAUSE = 1.0
"""Seconds between two looks at the runs."""


@dataclass(frozen=True)
class Ending:
    """How a run ended. error: in one line; None where it finished. recorded: whether the run has told that itself, in its
    record. again: whether it died by no fault of its own (its node, its memory, its time), so that another try may end well."""

    error: str | None
    recorded: bool = False
    again: bool = False


class Submitted(Protocol):
    """A run that was handed over."""

    def over(self) -> bool:
        """Whether it has ended, however."""

    def ending(self) -> Ending:
        """How it ended; asked once it is over."""

    def cancel(self) -> None:
        """End it now, or see that it never begins."""


def run_all(
    submit: Callable[[Job], Submitted], jobs: list[Job], number: int, update: Update, say: Say
) -> Iterator[tuple[Job, str | None, bool]]:
    """(job, its error or None, whether its record is still to be written) as runs end, at most `number` submitted at a time.
    One that died is submitted once more and goes on from its last checkpoint. Those that are not over are cancelled where
    this is left."""
    waiting, going = deque((job, False) for job in jobs), dict[str, tuple[Job, bool, Submitted]]()
    try:
        while waiting or going:
            while waiting and len(going) < number:
                job, again = waiting.popleft()
                going[job.name] = job, again, submit(job)
            for job, again, submitted in list(going.values()):
                if not submitted.over():
                    row = standing(job.name, job.place, datetime.now(UTC))
                    update(job.name, row.done, row.task or row.state)
                    continue
                del going[job.name]
                ending = submitted.ending()
                if ending.again and not again:
                    say(f"{job.name}: {ending.error}; it is submitted once more")
                    waiting.append((job, True))
                else:
                    yield job, ending.error, not ending.recorded
            if going:
                time.sleep(PAUSE)
    finally:
        for _, _, submitted in going.values():
            submitted.cancel()
