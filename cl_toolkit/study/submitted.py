"""The runs of a comparison as jobs of a cluster, which submitit hands to Slurm and asks about."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cl_toolkit.config.schema import Launcher
from cl_toolkit.errors import UserError
from cl_toolkit.study.watch import standing
from cl_toolkit.study.worker import work
from cl_toolkit.study.workers import Job, Update

PAUSE = 1.0
"""Seconds between two looks at the jobs."""


def told(line: str) -> str | None:
    """What a job does: one run. The reason in one line if it failed."""
    return work(json.loads(line))


def executor_of(launcher: Launcher, folder: Path) -> Any:
    """submitit's, with the parameters. Raises UserError where submitit or Slurm is not there, or a parameter is unknown."""
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            f"launcher.name: {launcher.name}: needs submitit, which is not installed: pip install 'cl-toolkit[slurm]'"
        ) from error
    try:
        found = submitit.AutoExecutor(folder, cluster=launcher.name)
        found.update_parameters(name="cl-toolkit", **launcher.parameters)
    except (NameError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"launcher: {' '.join(str(error).split())}") from error
    return found


@contextmanager
def interruptible() -> Iterator[None]:
    """For a process that is begun inside: it heeds SIGINT, by which submitit ends it, also where this one was put into the
    background by a shell, which has it ignored in all that is begun there."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if not ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_all(
    launcher: Launcher, folder: Path, jobs: list[Job], number: int, update: Update
) -> Iterator[tuple[Job, str | None, bool]]:
    """(job, its error or None, whether it died) as runs end, at most `number` submitted at a time. One that died, by a fault
    of its node, its memory or its time, is submitted once more and goes on from its last checkpoint; what submitit writes of
    each lies in `folder`. Those that are not over are cancelled where this is left."""
    executor = executor_of(launcher, folder)
    waiting, going = deque((job, False) for job in jobs), dict[str, tuple[Job, bool, Any]]()
    try:
        while waiting or going:
            while waiting and len(going) < number:
                job, again = waiting.popleft()
                with interruptible():
                    going[job.name] = job, again, executor.submit(told, job.line())
            for job, again, submitted in list(going.values()):
                if not submitted.done():
                    row = standing(job.name, job.place, datetime.now(UTC))
                    update(job.name, row.done, row.task or row.state)
                    continue
                del going[job.name]
                error, died = outcome(submitted)
                if died and not again:
                    update(job.name, -1, f"{error}; it is submitted once more")
                    waiting.append((job, True))
                else:
                    yield job, error, died
            if going:
                time.sleep(PAUSE)
    finally:
        for _, _, submitted in going.values():
            submitted.cancel(check=False)


def outcome(submitted: Any) -> tuple[str | None, bool]:
    """The error of a job that is over, None where its run finished, and whether the job died."""
    try:
        return submitted.result(), False
    except Exception as error:  # submitit's own, and whatever the job could not send back
        last = [line for line in str(error).splitlines() if line.strip()]
        said = last[-1].strip()[:200] if last else type(error).__name__
        return f"job {submitted.job_id} ended without a result ({said}); its log: {submitted.paths.stderr}", True
