"""The runs by which a strategy or an objective is checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_toolkit.check.runs import ANCHOR, NEIGHBOUR, Subject, stream_for, tiny_config
from cl_toolkit.config.schema import RunConfig
from cl_toolkit.config.typed import typed
from cl_toolkit.registry import OBJECTIVES, made
from cl_toolkit.strategy import Strategy, Tags
from cl_toolkit.study.cells import load_run


class Method(Subject):
    """A strategy or an objective."""

    def __init__(self, reference: str, thing: Any, settings: Mapping[str, Any] | None = None):
        super().__init__(reference, thing, settings)
        needs = thing.tags.needs if self.is_strategy else frozenset()
        fitting = (name for name in OBJECTIVES if needs <= OBJECTIVES.get(name, "check").gives)
        self.objective: dict[str, Any] = {"name": next(fitting, next(iter(OBJECTIVES)))}

    @property
    def is_strategy(self) -> bool:
        return issubclass(self.thing, Strategy)

    @property
    def exceptions(self) -> Mapping[int, str]:
        return self.tags.exceptions if self.is_strategy else {}

    @property
    def adapter(self) -> dict[str, Any] | None:
        """The adapter that the strategy needs."""
        needed = self.thing.tags.life_cycles[0] if self.is_strategy else None
        return {"r": 2, "lora_alpha": 4, "between_tasks": needed} if needed else None

    @property
    def tags(self) -> Tags:
        """The strategy's, as it is set."""
        return made(self.thing, typed(self.thing.Config, dict(self.settings), "settings", "check"), "check").as_set

    @property
    def divisible(self) -> bool:
        """Whether a batch may be cut."""
        return (OBJECTIVES.get(self.objective["name"], "check") if self.is_strategy else self.thing).divisible

    def config(
        self, settings: dict[str, Any] | None = None, *, absent: bool = False, beside: bool = False, **changes: Any
    ) -> RunConfig:
        """A tiny run with the subject (`absent`: without it; `beside`: with a neighbour)."""
        plain = {"model": {"adapter": self.adapter}, **changes}
        mine = {**self.settings, **(settings or {})}
        if self.is_strategy:
            plain.setdefault("objective", self.objective)
            strategies = {} if absent else {self.reference: mine}
            plain["strategies"] = {**({NEIGHBOUR: {}} if beside else {}), **strategies}
        else:
            plain.setdefault("objective", {"name": "sft"} if absent else {"name": self.reference, **mine})
            plain["strategies"] = {NEIGHBOUR: {}} if beside else {}
        stream = stream_for(OBJECTIVES.get(plain["objective"]["name"], "check"))
        wanted = self.is_strategy and (self.tags.anchored or self.tags.validates)
        anchors = {"anchors": [ANCHOR]} if wanted else {}
        plain["stream"] = {"name": stream, **anchors, **plain.get("stream", {})}
        if isinstance(plain["model"], dict) and plain["model"].get("adapter") is None:
            plain["model"] = {k: v for k, v in plain["model"].items() if k != "adapter"}
        return load_run(tiny_config(**plain))
