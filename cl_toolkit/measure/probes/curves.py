"""Forgetting curves: how well each task is still done, step by step, after it was learned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

from cl_toolkit.measure.probe import Moment, Probe
from cl_toolkit.models.requests import Logprobs, Reply, Request
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

    Rows: step (of the whole run), trained, scored, lag, examples_seen, tokens_seen, value, n, and with `loss` the negative
    log-likelihood of the targets per token, in nats.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """schedule: when a point is taken (`is_due`). every: of the linear one, in optimizer steps. examples: of each task, of
        those that the matrix is scored on. loss: whether the targets' loss is measured too, which costs a forward of each."""

        schedule: Literal["log_spaced", "linear", "off"]
        every: Annotated[int, at_least(1)]
        examples: Annotated[int, at_least(1)]
        loss: bool

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
        exams = [moment.exams[name].part(self.config.examples) for name in self._tasks(moment)]
        asked: list[Request] = [request for exam in exams for request in exam.ask(moment.allowed)]
        return [*asked, *(Logprobs(e) for exam in exams for e in exam.examples if self.config.loss)]

    def read(self, moment: Moment, replies: Sequence[Reply]) -> Iterator[dict[str, Any]]:
        if moment.kind == "task_end" and moment.learned is not None:
            self.ends[moment.learned] = moment.step
        exams, given = [moment.exams[name].part(self.config.examples) for name in self._tasks(moment)], iter(replies)
        values = {exam.name: exam.value(exam.read(list(islice(given, len(exam.examples))))) for exam in exams}
        losses = {exam.name: loss(list(islice(given, len(exam.examples)))) for exam in exams if self.config.loss}
        for exam in sorted(exams, key=lambda exam: list(moment.exams).index(exam.name)):
            yield {
                "step": moment.step,
                "trained": moment.task,
                "scored": exam.name,
                "lag": moment.step - self.ends[exam.name],
                "examples_seen": moment.examples_seen,
                "tokens_seen": moment.tokens_seen,
                "value": values[exam.name],
                **({"loss": losses[exam.name]} if losses else {}),
                "n": len(exam.examples),
            }

    def state(self) -> dict[str, Any]:
        return {"ends": self.ends}

    def load_state(self, state: dict[str, Any]) -> None:
        self.ends = dict(state["ends"])


def loss(replies: Sequence[Reply]) -> float:
    """The negative log-likelihood per token of all targets together, in nats."""
    return -math.fsum(p for r in replies for p in r.logprobs) / sum(len(r.logprobs) for r in replies)
