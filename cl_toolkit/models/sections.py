"""The config's sections `prompt`, `generation` and `model`, as far as they are the same for every kind of model."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cl_toolkit.ranges import above, at_least


@dataclass(frozen=True, kw_only=True)
class Prompt:
    template: str
    system: str | None
    suffix: str
    chat_template: Literal["auto", "off"]
    max_prompt_length: Annotated[int, at_least(1)]
    chat_template_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    thoughts: bool = False
    date: str = "2026-01-01"
    learn_turns: Literal["last", "all"] = "last"

    def __post_init__(self) -> None:
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            raise ValueError(f"date: expected a day such as '2026-01-01', got {self.date!r}") from None


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How answers are written, those that are scored and rollouts."""

    engine: Literal["own", "vllm"]
    cache: Literal["dynamic", "static"]
    gpu_memory_utilization: Annotated[float, above(0).up_to(1)]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """LoRA by PEFT's names, and what happens to it between tasks: one adapter trained on and on (`continue`), merged into
    the weights and started afresh (`merge`), or frozen with a new one added (`stack`)."""

    r: Annotated[int, at_least(1).up_to(65_536)] = 8
    lora_alpha: Annotated[int, at_least(1)] = 16
    lora_dropout: Annotated[float, at_least(0).below(1)] = 0.0
    target_modules: tuple[str, ...] | str = "all-linear"
    use_rslora: bool = False
    between_tasks: Literal["continue", "merge", "stack"] = "continue"


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    name: str
    adapter: Adapter | None
