"""The file by which a folder's comparison is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cl_toolkit.runs import checkpoint

MEMBERS = "study.json"
"""What belongs to a study: its methods in order, for each run what it is known by, how its settings were chosen, and what its
methods get equally."""


def read_members(folder: Path) -> dict[str, Any] | None:
    """What belongs to the study in this folder; None where no comparison was made here."""
    path = folder / MEMBERS
    return checkpoint.read_checked(path) if path.exists() else None
