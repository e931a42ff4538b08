"""How long a step takes, by taking some."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from cl_toolkit.config.schema import RunConfig
from cl_toolkit.engine import launch
from cl_toolkit.runs.run import Run
from cl_toolkit.types import Stream

STEPS = 3
"""After a first one, in which all that is made once is made."""


def measured(config: RunConfig, stream: Stream) -> float:
    """Seconds of a step of the first task, without probes and in a folder of its own. Loads the model."""
    launch.refuse_several("a measured plan")
    ends: list[float] = []
    short = replace(config, train=replace(config.train, max_steps=STEPS + 1))
    with TemporaryDirectory() as folder:
        run: Any = Run(short, Path(folder), None, stream)
        run.probes, run.log = {}, lambda *_: ends.append(time.perf_counter())
        run.train(stream.stages[0], 0)
    return median(b - a for a, b in pairwise(ends))
