"""The config's section `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cl_toolkit.ranges import at_least


@dataclass(frozen=True, kw_only=True)
class Curve:
    schedule: Literal["log_spaced", "linear", "off"]
    every: Annotated[int, at_least(1)]
    examples: Annotated[int, at_least(1)]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    tasks: Literal["all", "seen"]
    split: Literal["test", "valid"]
    limit: Annotated[int, at_least(1)] | None
    batch_size: Annotated[int, at_least(1)]
    max_new_tokens: Annotated[int, at_least(1)]
    forgetting_curve: Curve
