"""The config's section `stream`, as far as it is the same for every stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cl_toolkit.ranges import at_least


@dataclass(frozen=True, kw_only=True)
class Limit:
    train: Annotated[int, at_least(1)] | None
    valid: Annotated[int, at_least(1)] | None
    test: Annotated[int, at_least(1)] | None


@dataclass(frozen=True, kw_only=True)
class StreamSection:
    """then: streams whose tasks come after, each `{name, tasks, objective, ...its own settings}`; `data.streams` joins them."""

    name: str
    tasks: tuple[str, ...] | None
    order: tuple[str, ...] | None
    view: Literal["joint", "cumulative", "independent", "start"] | None
    scenario: Literal["task", "class"]
    anchors: tuple[str, ...]
    limit: Limit
    then: tuple[dict[str, Any], ...]


def scorer_of(setting: dict[str, str] | str | None, task: str, usual: str = "exact_match") -> str:
    """A task's scorer by a stream's setting `scorer`: one for all, or task: scorer; `usual` where none is named."""
    named = setting.get(task) if isinstance(setting, dict) else setting
    return named or usual
