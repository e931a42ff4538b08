"""What a run costs, measured by the loop: steps, rows, tokens, forwards, memory, compute seconds and wall-clock beside them."""

from __future__ import annotations

import contextlib
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_toolkit.lazy import LazyModule

if TYPE_CHECKING:
    import torch

    from cl_toolkit.engine.session import Session
else:
    torch = LazyModule("torch")

PHASES = ("train", "evaluate", "curves")
COUNTS = (
    "steps",
    "examples",
    "new_examples",
    "rollouts",
    "tokens",
    "forwards",
    "backwards",
    "extra_forwards",
    "extra_backwards",
)
"""steps: optimizer steps. examples: rows trained on, rehearsed ones included. new_examples: those that are not. rollouts:
answers that were sampled for training. tokens: targets. forwards, backwards: of training steps and their rollouts, per
process (a pass over examples between tasks, such as EWC's, is in the seconds alone); extra_: those beyond a forward and a
backward per micro-batch."""


def fresh_cost(device: torch.device) -> dict[str, Any]:
    """The record's `cost` of a run that has not begun. compute_seconds: of the processor by this process, or of the GPU."""
    return {
        "compute_seconds": dict.fromkeys(PHASES, 0.0),
        "compute_unit": "GPU s" if device.type == "cuda" else "CPU s",
        "wall_seconds": dict.fromkeys(PHASES, 0.0),
        **dict.fromkeys(COUNTS, 0),
        "peak_memory_bytes": None,
        "stored_examples": 0,
        "stored_bytes": 0,
        "trainable_parameters": 0,
        "extra_parameters": 0,
    }


class Meter:
    """Adds to a record's `cost` on one device."""

    def __init__(self, cost: dict[str, Any], device: torch.device):
        self.cost, self.device = cost, device
        self._inside: list[list[float]] = []
        forget_peak(device)

    def now(self) -> tuple[float, float]:
        """Seconds of the processor, or of the GPU, and of the clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            wall = time.perf_counter()
            return wall, wall
        return time.process_time(), time.perf_counter()

    @contextmanager
    def clock(self, phase: str):
        """Add the time spent inside to a phase; a phase within another one is not counted twice."""
        started, self._inside = self.now(), [*self._inside, [0.0, 0.0]]
        try:
            yield
        finally:
            *self._inside, inner = self._inside
            spent = [after - before for after, before in zip(self.now(), started, strict=True)]
            for key, total, within in zip(("compute_seconds", "wall_seconds"), spent, inner, strict=True):
                self.cost[key][phase] += total - within
            if self._inside:
                self._inside[-1] = [a + b for a, b in zip(self._inside[-1], spent, strict=True)]

    def count(self, session: Session) -> None:
        """Add what a task's session has counted."""
        for key in ("examples", "new_examples", "tokens"):
            self.cost[key] += getattr(session, f"{key}_seen")
        for key in ("forwards", "backwards", "extra_backwards"):
            self.cost[key] += getattr(session, key)
        self.cost["extra_forwards"] += session.forwards - session.backwards


def forget_peak(device: torch.device) -> None:
    """Begin to measure the largest memory use anew, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """The largest memory use in bytes since `forget_peak`: of the GPU, or of this process (where the system cannot forget,
    since its start; None where it does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource  # POSIX only
    except ImportError:
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
