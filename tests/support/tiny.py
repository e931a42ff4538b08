"""The runs of the contract suite, under short names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cl_toolkit.check.runs import ANCHOR, RFT, TINY, Trajectory, tiny_config
from cl_toolkit.config.schema import RunConfig
from cl_toolkit.registry import STRATEGIES
from cl_toolkit.runs.events import Event, Saved
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run
from cl_toolkit.study.cells import load_run

__all__ = [
    "ANCHOR",
    "RFT",
    "TINY",
    "Trajectory",
    "anchors_for",
    "stop_after_a_task",
    "stopped_and_resumed",
    "stopped_and_the_same",
    "tiny_config",
    "tiny_run_config",
    "trajectory",
]


def tiny_run_config(**changes: Any) -> RunConfig:
    """One run of the tiny config."""
    return load_run(tiny_config(**changes))


def anchors_for(*names: str) -> dict[str, Any]:
    """The part of a stream that strategies need which check anchors."""
    return {"anchors": [ANCHOR]} if any(STRATEGIES.get(name, "test").tags.validates for name in names) else {}


def trajectory(folder: Path, **changes: Any) -> Trajectory:
    """Run a tiny config in a folder."""
    return Trajectory(Run(tiny_run_config(**changes), folder, None))


class Stop(Exception):
    """The end of a run that was stopped on purpose."""


def stop_after_a_task(run: Run) -> None:
    """Execute a run until its first task is saved, and no further."""

    def stop(event: Event) -> None:
        if isinstance(event, Saved):
            raise Stop

    run.events.listeners.append(stop)
    try:
        run.execute()
    except Stop:
        return
    raise AssertionError("the run was over before it could be stopped")


def stopped_and_resumed(config, folder, last):
    """A run that died after task `last` was saved, and was begun again."""
    stopped = Run(config, folder, None)
    save = stopped.save

    def save_then_stop(k):
        save(k)
        if k == last:
            raise InterruptedError

    stopped.save = save_then_stop
    with pytest.raises(InterruptedError):
        stopped.execute()
    return Trajectory(Run(config, folder, None))


def stopped_and_the_same(folder: Path, **changes: Any) -> Trajectory:
    """A tiny run that was stopped after its first task, in `folder/stopped`, and has become what one in one piece is."""
    whole = trajectory(folder / "whole", **changes)
    run = Run(tiny_run_config(**changes), folder / "stopped", None)
    stop_after_a_task(run)
    again = Trajectory(Run(run.config, folder / "stopped", None))
    assert again.weights == whole.weights
    assert comparable(again.record) == comparable(whole.record)
    return again
