"""One folder, one process: a lock that dies with its owner."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cl_toolkit.errors import UserError

NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder for this process alone; it is made if it is not there. Raises UserError where another process holds it.

    The operating system lets go of the lock when its owner ends, however it ends.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder}: another process is at work here{_owner(path)}; wait for it or end it") from None
    try:
        with contextlib.suppress(OSError):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def _owner(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")[:200]
    except OSError:
        return ""
    return f" ({text})" if text.isprintable() and text else ""
