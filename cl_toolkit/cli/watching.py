"""`watch`: how far a comparison is that runs somewhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from cl_toolkit.cli.console import printable
from cl_toolkit.study.watch import RunState, seconds_left, standings

OVER = ("finished", "failed")


def watch(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder that a comparison is writing.")],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 10.0,
    once: Annotated[bool, typer.Option("--once", help="Look once.")] = False,
):
    """How far a comparison is, from its folder alone, and about how long it takes still. Ends when all runs have: exit code 1
    where one has failed."""
    while True:
        rows = standings(results, datetime.now(UTC))
        for line in told(rows):
            typer.echo(line)
        if once or all(row.state in OVER for row in rows):
            raise typer.Exit(1 if any(row.state == "failed" for row in rows) else 0)
        time.sleep(every)


def told(rows: Sequence[RunState]) -> Iterator[str]:
    """A line for each run that has begun and is not over or has failed, and one for all."""
    for row in rows:
        if row.state not in ("finished", "waiting"):
            at = f"{row.task}, step {row.step}" if row.step is not None else ""
            yield f"{printable(row.run):32} {row.state:8} {row.done:4.0%}  {printable(at)}".rstrip()
    counts = [f"{n} {state}" for state in ("finished", "running", "waiting", "silent", "failed")
              if (n := sum(row.state == state for row in rows))]  # fmt: skip
    left = seconds_left(rows)
    more = "" if left is None else f"; about {timedelta(seconds=round(left))} left"
    yield f"{len(rows)} runs: {', '.join(counts)}{more}"
