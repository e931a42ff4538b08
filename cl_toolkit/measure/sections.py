"""The config's section `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cl_toolkit.measure.probes.curves import ForgettingCurves
from cl_toolkit.ranges import at_least


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """probes: name -> settings, of what is measured beside the matrix and the curves."""

    tasks: Literal["all", "seen"]
    split: Literal["test", "valid"]
    limit: Annotated[int, at_least(1)] | None
    batch_size: Annotated[int, at_least(1)]
    max_new_tokens: Annotated[int, at_least(1)]
    forgetting_curve: ForgettingCurves.Config
    probes: dict[str, Any]
