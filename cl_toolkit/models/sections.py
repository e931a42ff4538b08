"""The config's sections `prompt`, `generation` and `model`, as far as they are the same for every kind of model."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

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
class Abilities:
    """What can be done with an adapter.

    gives: of `pairs`, the two matrices of LoRA, whose product is all that is added to a layer. cannot: life cycle -> why an
    adapter of this kind cannot have it. alone: whether it works in one process only.
    """

    gives: frozenset[str] = frozenset()
    cannot: Mapping[str, str] = dataclasses.field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True, kw_only=True)
class AnyAdapter:
    """An adapter of any type, by PEFT's name of it, and what happens to it between tasks: one adapter trained on and on
    (`continue`), merged into the weights and started afresh (`merge`), or frozen with a new one added (`stack`).

    known: what can be done with it; None where only a trial says that. tasks: its settings task by task, where they differ
    (`per_task` in a config); the last ones go on.
    """

    known: ClassVar[Abilities | None] = None
    type: str = "lora"
    between_tasks: Literal["continue", "merge", "stack"] = "continue"
    target_modules: tuple[str, ...] | str | None = None
    tasks: tuple[AnyAdapter, ...] = dataclasses.field(default=(), init=False)

    @staticmethod
    def by_task(adapters: Sequence[AnyAdapter]) -> AnyAdapter:
        """The first one, which knows the settings of all tasks."""
        first = dataclasses.replace(adapters[0])
        object.__setattr__(first, "tasks", tuple(adapters))  # no user's key, so no argument
        return first

    def of_task(self, index: int) -> AnyAdapter:
        """The settings with which task `index` (from 0) begins its adapter."""
        return self.tasks[min(index, len(self.tasks) - 1)] if self.tasks else self

    def settings(self) -> dict[str, Any]:
        """PEFT's own keys, as far as they are set."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Adapter(AnyAdapter):
    """Plain LoRA by PEFT's names. What a trial of it says is known, without the seconds that PEFT takes to be imported."""

    known: ClassVar[Abilities | None] = Abilities(gives=frozenset({"pairs"}))
    r: Annotated[int, at_least(1).up_to(65_536)] = 8
    lora_alpha: Annotated[int, at_least(1)] = 16
    lora_dropout: Annotated[float, at_least(0).below(1)] = 0.0
    target_modules: tuple[str, ...] | str = "all-linear"
    use_rslora: bool = False

    def settings(self) -> dict[str, Any]:
        rest = ("type", "between_tasks", "tasks")
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in rest}


@dataclass(frozen=True, kw_only=True)
class PeftAdapter(AnyAdapter):
    """An adapter of another type, or LoRA with more of PEFT's keys. given: these keys and what they are set to."""

    given: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def settings(self) -> dict[str, Any]:
        return dict(self.given)


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    name: str
    adapter: AnyAdapter | None
