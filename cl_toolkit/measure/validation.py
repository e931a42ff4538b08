"""What the stream's anchors score on validation examples: for a strategy that says that it looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cl_toolkit.errors import UserError
from cl_toolkit.measure.exam import Exam

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.measure.answers import Answers
    from cl_toolkit.measure.sections import Evaluate
    from cl_toolkit.types import Task


class Validation:
    """Asks a model the anchors' validation examples, at most `evaluate.limit` of each, as the scorer of each wants."""

    def __init__(self, answers: Answers, anchors: Sequence[Task], section: Evaluate):
        """Raises UserError where an anchor has no validation examples: the ones that it is scored on cannot stand in."""
        for anchor in anchors:
            if not len(anchor.valid):
                raise UserError(f"stream.anchors: {anchor.name} has no valid examples, and a strategy asks for them")
        self.answers, self.split = answers, section.split
        self.exams = [Exam.of(anchor, replace(section, split="valid")) for anchor in anchors]

    def notes(self, who: Sequence[str]) -> list[str]:
        """That strategies choose by it, and where what they choose by is scored too."""
        names = ", ".join(exam.name for exam in self.exams)
        scored = "; evaluate.split: valid scores the same ones" if self.split == "valid" else ""
        return [f"strategies.{name}: chooses by validation examples of {names}{scored}" for name in who]

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Anchor -> its score, more being better whatever the scorer. Every process must ask, and gets the same."""
        replies = iter(self.answers(model, [request for exam in self.exams for request in exam.ask()]))
        found = {}
        for exam in self.exams:
            value = exam.value(exam.read([next(replies) for _ in exam.examples]))
            found[exam.name] = value if exam.scorer.higher_is_better else -value
        return found
