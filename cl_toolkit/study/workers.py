"""Several runs of a comparison at a time, each worker a process with a GPU of its own where there are several."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_toolkit.config.schema import Launcher, RunConfig

LAST_WORDS = 8
"""Lines of a worker's standard error that are kept for the message about its end."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """`launcher.parameters`: processes take none."""


@dataclass(frozen=True)
class Job:
    """A run for a worker, as plain data."""

    name: str
    config: RunConfig
    place: Path
    identity: dict[str, Any]
    shared: Path

    def line(self) -> str:
        """What the worker is told."""
        told = {"config": self.config.plain, "where": self.name, "method": self.config.method}
        told |= {"order": self.config.order, "place": str(self.place), "identity": self.identity}
        told["shared"] = str(self.shared)
        return json.dumps(told) + "\n"


Update = Callable[[str, float, str], None]
"""(run, fraction done, what is happening)."""
Say = Callable[[str], None]
"""Takes a sentence for the user."""
RunAll = Callable[[list[Job], int, Update, Say], Iterator[tuple[Job, str | None, bool]]]
"""(job, its error or None, whether its process died) as runs end, so many at a time."""


class Worker:
    """A process, what it is doing, and the lines that come from it (put into `inbox` as (worker, message or None))."""

    def __init__(self, inbox: queue.Queue, gpu: str | None):
        env = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        self.gpu = gpu
        self.job: Job | None = None
        self.words: deque[str] = deque(maxlen=LAST_WORDS)
        # a session of its own: Ctrl-C reaches the parent alone, which ends its workers
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cl_toolkit.study.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=env,
            start_new_session=True,
        )
        given, said, heard = self.process.stdin, self.process.stdout, self.process.stderr
        assert given is not None and said is not None and heard is not None  # noqa: PT018, all three are pipes
        self.pipes = (given, said, heard)
        self._hearing = threading.Thread(target=self._hear, daemon=True)
        self._listening = threading.Thread(target=self._listen, args=(inbox,), daemon=True)
        self._hearing.start()
        self._listening.start()

    def _listen(self, inbox: queue.Queue) -> None:
        for text in self.pipes[1]:
            inbox.put((self, json.loads(text)))
        inbox.put((self, None))

    def _hear(self) -> None:
        for text in self.pipes[2]:
            if text.strip():
                self.words.append(text.strip())

    def start(self, job: Job) -> None:
        """Give it a run."""
        self.job = job
        with contextlib.suppress(OSError):  # it has died, which its last line will say
            self.pipes[0].write(job.line())
            self.pipes[0].flush()

    def epitaph(self) -> str:
        """How it ended: exit code or signal, and its last words."""
        code = self.process.wait()
        self._hearing.join(timeout=5)
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = "; signal 9 is how a system out of memory ends a process" if code == -9 else ""
        said = f"; its last words: {self.words[-1][:200]}" if self.words else ""
        return f"its process {how}{hint}{said}"

    def end(self) -> None:
        """End it now."""
        self.process.kill()
        self.process.wait()
        for thread in (self._hearing, self._listening):
            thread.join(timeout=5)
        for pipe in self.pipes:
            with contextlib.suppress(OSError):
                pipe.close()


def gpus(device: str) -> list[str]:
    """The GPUs that workers share, as CUDA_VISIBLE_DEVICES names them; [] on a CPU or where a device is named."""
    if device not in ("auto", "cuda"):
        return []
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def runner(launcher: Launcher, folder: Path, jobs: int) -> RunAll | None:
    """One run after the other in this process, so that a class of a notebook works; several by workers."""
    return None if jobs == 1 else run_all


def run_all(jobs: list[Job], number: int, update: Update, say: Say) -> Iterator[tuple[Job, str | None, bool]]:
    """(job, its error or None, whether its process died) as runs end, `number` at a time. A run whose process died is tried
    once more at the end, alone; nothing is begun before a worker is free for it."""
    inbox: queue.Queue = queue.Queue()
    waiting, alone = deque(jobs), False
    lost: deque[Job] = deque()
    cards = gpus(jobs[0].config.engine.device) if jobs else []
    workers: list[Worker] = []
    try:
        for i in range(min(number, len(jobs))):
            workers.append(Worker(inbox, cards[i % len(cards)] if len(cards) > 1 else None))
            workers[-1].start(waiting.popleft())
        while any(worker.job for worker in workers):
            worker, message = inbox.get()
            job = worker.job
            if message is None:
                workers.remove(worker)
                if job is None:
                    worker.end()
                    continue
                ending = worker.epitaph()
                worker.end()
                if alone:
                    yield job, ending, True
                else:
                    lost.append(job)
                    say(f"{job.name}: {ending}; it is tried again at the end, alone")
                if waiting or lost:
                    workers.append(worker := Worker(inbox, worker.gpu))
                worker.job = None
            elif "event" in message:
                row = message["event"]
                update(job.name, row["fraction"], row["event"])
                continue
            else:
                worker.job = None
                yield job, message["error"], False
            if waiting:
                worker.start(waiting.popleft())
            elif lost and not any(other.job for other in workers):
                alone = True
                worker.start(lost.popleft())
    finally:
        for worker in workers:
            worker.end()
