"""Who runs the runs of a comparison, by name: a kind is a file and a line here.

It has `runner(launcher, folder, jobs)`, which gives how several runs are run, at most `jobs` at a time, what it writes of its
own in `folder`; None: one after the other in this process. With a dataclass `Config` its parameters are checked when the config
is read; without one they are whatever the library behind it takes.
"""

from __future__ import annotations

import importlib
from dataclasses import fields
from pathlib import Path
from typing import Any

from cl_toolkit.config.schema import Launcher, LauncherName
from cl_toolkit.config.typed import convert, typed
from cl_toolkit.errors import UserError
from cl_toolkit.study.workers import RunAll

KINDS: dict[LauncherName, str] = {
    "processes": "cl_toolkit.study.workers",
    "slurm": "cl_toolkit.study.by_submitit",
    "local": "cl_toolkit.study.by_submitit",
    "ray": "cl_toolkit.study.by_ray",
}


def kind_of(launcher: Launcher) -> Any:
    """The module behind the name."""
    return importlib.import_module(KINDS[launcher.name])


def read_launcher(section: Any, where: str) -> Launcher:
    """The section `launcher` of a comparison. where: its file. Raises UserError for what it does not know or take."""
    launcher = convert(Launcher, section, "launcher", where)
    config = getattr(kind_of(launcher), "Config", None)
    if config is not None:
        if launcher.parameters and not fields(config):
            hint = "name the launcher that they are for, or leave them out"
            raise UserError(f"{where}: launcher.parameters: {launcher.name} takes none; {hint}")
        typed(config, launcher.parameters, "launcher.parameters", where)
    return launcher


def runner(launcher: Launcher, folder: Path, jobs: int) -> RunAll | None:
    """How its kind runs several runs; None: in this process. Raises UserError where it can be seen that it cannot."""
    return kind_of(launcher).runner(launcher, folder, jobs)
