"""The accuracy matrix: every task scored before any training and after each stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cl_toolkit.measure.exam import Scored, chance_of
from cl_toolkit.measure.probe import Moment, Probe
from cl_toolkit.models.requests import Reply, Request


class Matrix(Probe):
    """Scores what the row asks for. found: task -> its scored examples, of the last row."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[Scored]] = {}

    def due(self, moment: Moment) -> bool:
        return moment.kind != "step"

    def ask(self, moment: Moment) -> list[Request]:
        # within one length the order of their names, whatever order the tasks come in
        return [r for name in sorted(moment.scored) for r in moment.exams[name].ask(moment.allowed)]

    def read(self, moment: Moment, replies: Sequence[Reply]) -> Iterator[dict[str, Any]]:
        """A row per task: its score, the score of guessing (None where it is not known), and how many answers were cut."""
        by_name, start = {}, 0
        for name in sorted(moment.scored):
            exam = moment.exams[name]
            by_name[name] = exam.read(replies[start : start + len(exam.examples)])
            start += len(exam.examples)
        self.found = {name: by_name[name] for name in moment.scored}
        for name, scored in self.found.items():
            yield {
                "task": name,
                "score": moment.exams[name].value(scored),
                "chance": chance_of(scored),
                "cut": sum(s.cut for s in scored),
            }
