"""The runs of a comparison as jobs of a cluster, which submitit hands to Slurm and asks about. The only door to submitit, which
the extra `slurm` installs."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cl_toolkit.config.schema import Launcher
from cl_toolkit.errors import UserError
from cl_toolkit.study.submitted import Ending, run_all
from cl_toolkit.study.worker import work
from cl_toolkit.study.workers import Job, RunAll, Say, Update


def runner(launcher: Launcher, folder: Path, jobs: int) -> RunAll:
    """Each run as a job; what submitit writes of it lies in `folder`."""
    return partial(run_jobs, launcher, folder)


def run_jobs(
    launcher: Launcher, folder: Path, jobs: list[Job], number: int, update: Update, say: Say
) -> Iterator[tuple[Job, str | None, bool]]:
    """As `submitted.run_all` has it. Raises UserError as `executor_of` does."""
    executor = executor_of(launcher, folder)

    def submit(job: Job) -> ClusterJob:
        with interruptible():
            return ClusterJob(executor.submit(told, job.line()))

    yield from run_all(submit, jobs, number, update, say)


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


@dataclass(frozen=True)
class ClusterJob:
    """A `submitit.Job` as the queue asks it."""

    job: Any

    def over(self) -> bool:
        """Whether Slurm has seen its end."""
        return self.job.done()

    def ending(self) -> Ending:
        """What it gave back; a job without a result died."""
        try:
            return Ending(self.job.result(), recorded=True)
        except Exception as error:  # submitit's own, and whatever the job could not send back
            last = [line for line in str(error).splitlines() if line.strip()]
            said = last[-1].strip()[:200] if last else type(error).__name__
            text = f"job {self.job.job_id} ended without a result ({said}); its log: {self.job.paths.stderr}"
            return Ending(text, again=True)

    def cancel(self) -> None:
        """By `scancel`, or as the stand-in does it."""
        self.job.cancel(check=False)
