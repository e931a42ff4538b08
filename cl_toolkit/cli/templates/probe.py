"""One line: what is measured while a model learns. Paper, or "ours"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, Any

from cl_toolkit import at_least
from cl_toolkit.measure.probe import Moment, Probe
from cl_toolkit.models.requests import Answer, Reply, Request


class MyIdea(Probe):
    """How long answers are, in characters, and how much longer than those of the start model. Replace this by your measure.

    Rows, one after each stage: step, trained, length, grown, n.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """examples: of each task. max_new_tokens: of an answer."""

        examples: Annotated[int, at_least(1)] = 8
        max_new_tokens: Annotated[int, at_least(1)] = 32

    needs = frozenset({"outputs"})  # what the model must give for it

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.start = 0.0

    def due(self, moment: Moment) -> bool:
        return moment.kind != "step"

    def ask(self, moment: Moment) -> list[Request]:
        exams = [moment.exams[name].part(self.config.examples) for name in sorted(moment.exams)]
        return [Answer(example, self.config.max_new_tokens) for exam in exams for example in exam.examples]

    def read(self, moment: Moment, replies: Sequence[Reply]) -> Iterator[dict[str, Any]]:
        length = fmean(len(reply.text) for reply in replies)
        if moment.kind == "start":
            self.start = length
            return
        yield {
            "step": moment.step,
            "trained": moment.task,
            "length": length,
            "grown": length - self.start,
            "n": len(replies),
        }

    def state(self) -> dict[str, Any]:
        return {"start": self.start}  # a run that goes on after a stop remembers it

    def load_state(self, state: dict[str, Any]) -> None:
        self.start = state["start"]
