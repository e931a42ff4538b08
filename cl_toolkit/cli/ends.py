"""How a command ends: well, by an error in one line, or because it was asked to."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

from cl_toolkit.cli.console import printable
from cl_toolkit.engine import launch
from cl_toolkit.runs.checkpoint import FULL

GOES_ON = "stopped; finished tasks and runs are kept, the same command goes on"
PATIENCE = 5.0
"""Seconds in which a process that is asked to end does so by itself, if it can."""


class Stopped(BaseException):
    """The system asks this process to end."""


def stop(number: int, frame: FrameType | None) -> None:
    """What SIGTERM and SIGHUP do: end as Ctrl-C does, workers included."""
    raise Stopped(number)


def heed_signals() -> None:
    """Be asked to end. One of several processes may wait for another meanwhile, where it hears nothing: then it is ended."""
    asked = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    for number in asked:
        signal.signal(number, stop)
    if launch.world() > 1:
        here, there = socket.socketpair()
        there.setblocking(False)
        signal.set_wakeup_fd(there.fileno())
        threading.Thread(target=_end_anyway, args=(here, there, {*asked, signal.SIGINT}), daemon=True).start()


def _end_anyway(here: socket.socket, there: socket.socket, asked: set[int]) -> None:
    """Wait for a signal, then for the main thread. there: held, so that it stays open."""
    while (number := here.recv(1)[0]) not in asked:
        pass
    time.sleep(PATIENCE)
    leave_at_once(128 + number)


def say(text: str) -> None:
    """A line for people, on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def say_stopped() -> None:
    """That all is kept; by the first process alone, and not where an error has been told."""
    if launch.rank() == 0 and launch.speaks():
        say(GOES_ON)


def leave_at_once(code: int) -> NoReturn:
    """End one of several processes that failed or was stopped: not even its farewell may wait for the others."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def leave(code: int) -> NoReturn:
    """End; where there are several processes, without a word to the others."""
    if launch.world() > 1:
        leave_at_once(code)
    sys.exit(code)


def fail(text: str, code: int) -> NoReturn:
    """End with an error, which one process tells. Another one, which may fail because that one is gone, lets the launcher see
    first whose exit code counts."""
    if launch.speaks():
        say(f"error: {text}")
    else:
        time.sleep(launch.GRACE)
    leave(code)


def fail_by(error: Exception) -> NoReturn:
    """End by what is no `UserError`: a full disk, or a fault of somebody's code."""
    if not isinstance(error, OSError):
        fail(f"{type(error).__name__}: {' '.join(str(error).split())} (--debug shows the traceback)", 1)
    if error.errno not in FULL:
        fail(f"{type(error).__name__}: {error} (--debug shows the traceback)", 1)
    fail(f"the disk is full: {error.filename or 'a file'} could not be written; free some room", 2)
