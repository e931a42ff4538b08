"""Where the time of a step goes: a trace and a table of a few steps, by torch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cl_toolkit.lazy import LazyModule

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

BEFORE, LOOKED_AT = 3, 5
"""Steps that are passed over, since the first ones do what is done once; steps that are looked at."""
ROWS = 30
"""Lines of the table."""
TRACE, TABLE = "profile-trace.json", "profile.txt"
"""Files in the run's folder: for chrome://tracing or ui.perfetto.dev, and for people."""


@contextmanager
def profiled(folder: Path, device: torch.device, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """What is called after each step. The files are written when enough steps are over, or at the end with those that there
    were; `say` tells where they are, or that there were too few."""
    profiler = torch.profiler
    activities = [profiler.ProfilerActivity.CPU]
    on_gpu = device.type == "cuda"
    if on_gpu:
        activities.append(profiler.ProfilerActivity.CUDA)
    written: list[Path] = []

    def write(found: torch.profiler.profile) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(folder / TRACE))
        dearest = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        (folder / TABLE).write_text(found.key_averages().table(sort_by=dearest, row_limit=ROWS), encoding="utf-8")
        written.append(folder / TABLE)

    plan = profiler.schedule(wait=BEFORE - 1, warmup=1, active=LOOKED_AT, repeat=1)
    with profiler.profile(activities=activities, schedule=plan, on_trace_ready=write) as running:
        yield running.step
    say(
        f"profile: {folder / TRACE} and {TABLE}"
        if written
        else f"profile: nothing was looked at: the task had no more than {BEFORE} steps"
    )
