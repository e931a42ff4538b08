"""Which kind of forgetting: whether an old task's answers have lost their form or what they say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from cl_toolkit.measure.content import content, valid
from cl_toolkit.measure.exam import Exam, Scored
from cl_toolkit.measure.probe import Moment, Probe
from cl_toolkit.measure.scorers import score
from cl_toolkit.models.requests import Reply, Request
from cl_toolkit.ranges import at_least


class Autopsy(Probe):
    """After each stage, of each task learned so far, the matrix's own answers scored twice: as its scorer wants them (strict)
    and with the form forgiven (content). Where what was lost is told apart from its own end:

        drop = superficial + essential, essential = content then - content now, superficial = what strict lost beyond that.

    Superficial and essential forgetting: SEFE (Chen et al. 2025, arXiv 2505.02486); the sum is ours. Of tasks whose scorer is
    not right or wrong as a whole (`Scorer.exact`), or reads no written answer, there is no row. Nothing more is asked, but
    for reminders. Rows: step, trained, row, scored, strict, content, valid (share of answers in the form that is asked for,
    None where that cannot be told), reminded (strict score with a reminder, None without), drop, superficial, essential, n.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """reminder: training examples of the task that stand before each question as turns, for answers that are written
        once more; 0: none. The prompt is cut as any other where it is too long."""

        reminder: Annotated[int, at_least(0)] = 0

    paper: ClassVar[str] = "Chen et al. 2025, arXiv 2505.02486"
    needs: ClassVar[frozenset[str]] = frozenset({"generates"})

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.ends: dict[str, dict[str, float]] = {}
        """Task -> its strict and content score at its own end."""

    def due(self, moment: Moment) -> bool:
        return moment.kind == "task_end" or (moment.kind == "start" and self.config.reminder > 0)

    def _exams(self, moment: Moment) -> list[Exam]:
        """Those that are looked at, in an order that does not depend on that of the tasks."""
        names = [name for name in sorted(moment.scored) if name in moment.past or name == moment.learned]
        return [e for name in names if (e := moment.exams[name]).scorer.exact and e.scorer.reads == "answer"]

    def ask(self, moment: Moment) -> list[Request]:
        k = self.config.reminder
        if moment.kind == "start":  # the longest of each, so that what does not fit is said before any training
            every = [e.reminded(k) for e in moment.exams.values() if e.scorer.reads == "answer"]
            return [
                max(e.ask(), key=lambda r: sum(len(m.content) for m in r.example.messages)) for e in every if e.examples
            ]
        exams = self._exams(moment)
        asked = [*exams, *(exam.reminded(k) for exam in exams)] if k else exams
        return [request for exam in asked for request in exam.ask(moment.allowed)]

    def read(self, moment: Moment, replies: Sequence[Reply]) -> Iterator[dict[str, Any]]:
        if moment.kind == "start":
            return
        exams, given = self._exams(moment), iter(replies)
        found = [exam.read([next(given) for _ in exam.examples]) for exam in exams]
        again = [exam.reminded(self.config.reminder).read([next(given) for _ in exam.examples])
                 for exam in exams if self.config.reminder]  # fmt: skip
        for i, (exam, scored) in enumerate(zip(exams, found, strict=True)):
            told = looked_at(exam, scored)
            end = self.ends.setdefault(exam.name, {"strict": told["strict"], "content": told["content"]})
            essential = end["content"] - told["content"]
            superficial = (told["content"] - told["strict"]) - (end["content"] - end["strict"])
            yield {
                "step": moment.step,
                "trained": moment.task,
                "row": moment.row,
                "scored": exam.name,
                **told,
                "reminded": exam.value(again[i]) if again else None,
                "drop": superficial + essential,
                "superficial": superficial,
                "essential": essential,
                "n": len(scored),
            }

    def state(self) -> dict[str, Any]:
        return {"ends": self.ends}

    def load_state(self, state: dict[str, Any]) -> None:
        self.ends = {name: dict(values) for name, values in state["ends"].items()}


def looked_at(exam: Exam, scored: Sequence[Scored]) -> dict[str, Any]:
    """strict, content and valid of a task's answers: shares of its examples. What is strictly right is right in content."""
    said = [max(s.score, score(exam.name, "content", content, s.example, s.answer)) for s in scored]
    forms = [valid(exam.scorer, s.example, s.answer) for s in scored]
    return {
        "strict": sum(s.score for s in scored) / len(scored),
        "content": sum(said) / len(scored),
        "valid": None if None in forms else sum(map(bool, forms)) / len(scored),
    }
