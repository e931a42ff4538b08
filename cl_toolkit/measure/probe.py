"""What a probe is: it asks about the model at its moments, and makes rows of the replies. It never touches the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cl_toolkit.models.requests import Reply, Request

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.measure.exam import Exam

    Ask = Callable[[nn.Module, Sequence[Request]], list[Reply]]


@dataclass(frozen=True)
class Moment:
    """When a probe may look.

    kind: `start` (before any training), `step` (after an optimizer step), `task_end` (a stage is over, adapters merged).
    task: what is, or was, trained. step, examples_seen, tokens_seen: of the whole run. row: of the matrix, the tasks learned
    by the end of the stage. exams: of every task and anchor, by name. scored: those that the row asks for. past: those
    learned before, whose forgetting is watched. learned: the one whose own end this is. allowed: what answers are chosen
    from; None: from each example's own choices.
    """

    kind: Literal["start", "step", "task_end"]
    task: str
    row: int
    step: int
    examples_seen: int
    tokens_seen: int
    exams: Mapping[str, Exam]
    scored: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    learned: str | None = None
    allowed: tuple[str, ...] | None = None


class Probe:
    """Measures while a model learns. Settings are a keyword-only frozen dataclass `Config` inside the class.

    What it asks is answered in one pass with what the others ask, in eval mode and without a gradient. Its rows stand in the
    record under `probes`, by the name that the config gives it. It is made anew in each run; what it must remember over a
    stop is its state. needs: what a model must give for it, of `Kind.gives`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings with their defaults. A plain probe has none."""

    paper: ClassVar[str] = "ours"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: Any = None):
        self.config: Any = self.Config() if config is None else config

    def due(self, moment: Moment) -> bool:
        """Whether it looks at this moment."""
        raise NotImplementedError

    def ask(self, moment: Moment) -> Sequence[Request]:
        """What it wants to know."""
        raise NotImplementedError

    def read(self, moment: Moment, replies: Sequence[Reply]) -> Iterable[dict[str, Any]]:
        """The replies, in the order of the requests, as rows of plain data."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """All that must survive a stop between tasks: tensors, numbers, strings, lists, dicts."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""


def due(probes: Mapping[str, Probe], moment: Moment) -> dict[str, Probe]:
    """Those that look at a moment."""
    return {name: probe for name, probe in probes.items() if probe.due(moment)}


def look(answers: Ask, model: nn.Module, due: Mapping[str, Probe], moment: Moment) -> dict[str, list[dict[str, Any]]]:
    """The rows of probes that are due, by name; all their requests in one pass."""
    asked = {name: list(probe.ask(moment)) for name, probe in due.items()}
    replies = iter(answers(model, [request for requests in asked.values() for request in requests]))
    return {name: list(probe.read(moment, list(islice(replies, len(asked[name]))))) for name, probe in due.items()}
