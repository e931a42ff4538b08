"""The runs of the contract suite, under short names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cl_toolkit.check.runs import RFT, TINY, Trajectory, tiny_config
from cl_toolkit.config import RunConfig
from cl_toolkit.runner import Run
from cl_toolkit.study_config import load_run

__all__ = ["RFT", "TINY", "Trajectory", "tiny_config", "tiny_run_config", "trajectory"]


def tiny_run_config(**changes: Any) -> RunConfig:
    """One run of the tiny config."""
    return load_run(tiny_config(**changes))


def trajectory(folder: Path, **changes: Any) -> Trajectory:
    """Run a tiny config in a folder."""
    return Trajectory(Run(tiny_run_config(**changes), folder, None))
