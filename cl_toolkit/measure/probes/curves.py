"""Forgetting curves: how well each task is still done, step by step, after it was learned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cl_toolkit.measure.evaluate import Evaluator, Scored, score_of
from cl_toolkit.types import spread

if TYPE_CHECKING:
    from cl_toolkit.engine.session import Session
    from cl_toolkit.measure.sections import Curve
    from cl_toolkit.types import Task


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


class ForgettingCurves:
    """Scores each past task on a fixed subset when its time has come. A task's curve starts at its own end, lag 0.

    limit: of the examples that the matrix is scored on (`evaluate.limit`); the subset is spread over these.

    rows: dicts of step (of the whole run), trained, scored, lag, examples_seen, value, n.
    """

    def __init__(self, settings: Curve, evaluator: Evaluator, limit: int | None = None):
        self.settings, self.evaluator, self.limit = settings, evaluator, limit
        self.rows: list[dict[str, Any]] = []
        self.ends: dict[str, int] = {}

    def learned(self, task: Task, step: int, examples_seen: int, scored: list[Scored]) -> None:
        """A task's own end, from its scores of the matrix (the subset is spread over them)."""
        if self.settings.schedule == "off":
            return
        self.ends[task.name] = step
        self._add(task.name, task, step, examples_seen, list(spread(scored, self.settings.examples)))

    def watch(self, session: Session, trained: str, past: list[Task], step: int, examples_seen: int) -> None:
        """Called after every optimizer step; `step` counts over the whole run."""
        settings = self.settings
        due = [
            t
            for t in past
            if t.name in self.ends and is_due(step - self.ends[t.name], settings.schedule, settings.every)
        ]
        if not due:
            return
        forwards = session.forwards
        found = self.evaluator(session.model, [self._subset(t) for t in due])
        for task in due:
            self._add(trained, task, step, examples_seen, found[task.name])
        session.forwards = forwards  # watching is not a cost of the method

    def _subset(self, task: Task) -> Task:
        """The task with the examples of its curve alone, the same ones as at lag 0."""
        scored = self.evaluator.examples(task, self.limit)
        return replace(task, **{self.evaluator.split: spread(scored, self.settings.examples)})

    def _add(self, trained: str, task: Task, step: int, examples_seen: int, scored: list[Scored]) -> None:
        self.rows.append(
            {
                "step": step,
                "trained": trained,
                "scored": task.name,
                "lag": step - self.ends[task.name],
                "examples_seen": examples_seen,
                "value": score_of(task, scored),
                "n": len(scored),
            }
        )
