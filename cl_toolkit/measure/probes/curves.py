"""Forgetting curves: how well each task is still done, step by step, after it was learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cl_toolkit.measure.probe import Moment, Probe
from cl_toolkit.models.requests import Reply, Request
from cl_toolkit.ranges import at_least


def is_due(lag: int, schedule: str, every: int) -> bool:
    """Whether a point is taken so many steps after a task's end: log_spaced is 1, 2, 3, 5, 8, 12, then ten times 2, 3, 5,
    8, 12 and so on."""
    if schedule == "off" or lag < 1:
        return False
    if schedule == "linear":
        return lag % every == 0
    while lag > 12:
        if lag % 10:
            return False
        lag //= 10
    return lag in (1, 2, 3, 5, 8, 12)


class ForgettingCurves(Probe):
    """Scores each past task on a fixed subset when its time has come. A task's curve starts at its own end, lag 0.

    Rows: step (of the whole run), trained, scored, lag, examples_seen, value, n.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """schedule: when a point is taken (`is_due`). every: of the linear one, in optimizer steps. examples: of each task, of
        those that the matrix is scored on."""

        schedule: Literal["log_spaced", "linear", "off"]
        every: Annotated[int, at_least(1)]
        examples: Annotated[int, at_least(1)]

    def __init__(self, config: Config):
        super().__init__(config)
        self.ends: dict[str, int] = {}

    def due(self, moment: Moment) -> bool:
        return bool(self._tasks(moment))

    def _tasks(self, moment: Moment) -> list[str]:
        """The tasks of which a point is taken."""
        config = self.config
        if config.schedule == "off":
            return []
        if moment.kind == "task_end":
            return [] if moment.learned is None else [moment.learned]
        ends = {name: self.ends[name] for name in moment.past if name in self.ends}
        return sorted(name for name, end in ends.items() if is_due(moment.step - end, config.schedule, config.every))

    def ask(self, moment: Moment) -> list[Request]:
        exams = (moment.exams[name].part(self.config.examples) for name in self._tasks(moment))
        return [request for exam in exams for request in exam.ask(moment.allowed)]

    def read(self, moment: Moment, replies: Sequence[Reply]) -> Iterator[dict[str, Any]]:
        if moment.kind == "task_end" and moment.learned is not None:
            self.ends[moment.learned] = moment.step
        found, start = {}, 0
        for name in self._tasks(moment):
            exam = moment.exams[name].part(self.config.examples)
            found[name] = exam.value(exam.read(replies[start : start + len(exam.examples)])), len(exam.examples)
            start += len(exam.examples)
        for name in sorted(found, key=list(moment.exams).index):
            value, n = found[name]
            yield {
                "step": moment.step,
                "trained": moment.task,
                "scored": name,
                "lag": moment.step - self.ends[name],
                "examples_seen": moment.examples_seen,
                "value": value,
                "n": n,
            }

    def state(self) -> dict[str, Any]:
        return {"ends": self.ends}

    def load_state(self, state: dict[str, Any]) -> None:
        self.ends = dict(state["ends"])
