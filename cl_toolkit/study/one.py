"""One run of a comparison, in whatever process."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cl_toolkit.config.schema import RunConfig
from cl_toolkit.errors import UserError
from cl_toolkit.runs import checkpoint
from cl_toolkit.runs.events import Listener
from cl_toolkit.runs.record import head


def execute_run(
    config: RunConfig,
    place: Path,
    listener: Listener | None = None,
    expected: Mapping[str, Any] | None = None,
    shared: Path | None = None,
) -> str | None:
    """One run; the reason in one line if it failed, which its record then also says."""
    from cl_toolkit.runs.run import execute

    try:
        execute(config, place, listener, expected, shared=shared)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        write_failure(
            config, place, reason.strip().splitlines()[0] if reason.strip() else reason, traceback.format_exc()
        )
        return reason
    return None


def write_failure(config: RunConfig, place: Path, error: str, trace: str = "") -> None:
    """The record of a run that failed; the traceback beside it. Where even that cannot be written, the error is told anyway."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        checkpoint.write_checked(place / "record.json", head(config, "failed", error))
        checkpoint.write_text(place / "traceback.txt", trace)
    except (OSError, UserError):
        return
