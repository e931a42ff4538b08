"""Score a model on tasks: answers by greedy generation, or the likeliest of the allowed answers. Leaves no trace in the
model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from cl_toolkit.engine.processes import Processes
from cl_toolkit.measure.answers import Answers
from cl_toolkit.measure.scorers import score
from cl_toolkit.models.requests import Answer, Choice, Reply, Request
from cl_toolkit.registry import SCORERS
from cl_toolkit.types import Example, Task, spread

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.models.kind import Codec


@dataclass(frozen=True)
class Scored:
    """One example, answered and scored. chance: the score of pure guessing, 1 / number of allowed answers where the answer
    was chosen. cut: a generated answer that did not end within `max_new_tokens`."""

    task: str
    example: Example
    answer: str
    score: float
    chance: float = 0.0
    cut: bool = False


class Evaluator:
    """Scores tasks on one split.

    choices: what every example is chosen from instead of its own choices, in a class-incremental stream; None: its own.
    """

    choices: tuple[str, ...] | None = None

    def __init__(
        self, codec: Codec, *, split: str, batch_size: int, max_new_tokens: int, processes: Processes | None = None
    ):
        self.split, self.max_new_tokens = split, max_new_tokens
        self.answers = Answers(codec, batch_size, processes)

    def examples(self, task: Task, limit: int | None = None) -> Sequence[Example]:
        """The examples that a task is scored on; a limit takes some of the whole split."""
        return spread(getattr(task, self.split), limit)

    def __call__(self, model: nn.Module, tasks: Sequence[Task], limit: int | None = None) -> dict[str, list[Scored]]:
        """Per task the scored examples, in the split's order. limit: at most so many per task, spread over it."""
        scorers = {task.name: SCORERS.get(task.scorer, f"task {task.name}: scorer") for task in tasks}
        examples = {task.name: self.examples(task, limit) for task in tasks}
        # within one length the order of their names, whatever order the tasks come in
        work = [(name, e) for name in sorted(examples) for e in examples[name]]
        replies = self.answers(model, [self.request(scorers[name], e) for name, e in work])
        found = {(name, e.id): reply for (name, e), reply in zip(work, replies, strict=True)}
        return {
            task.name: [self._scored(task, scorers[task.name], e, found[task.name, e.id]) for e in examples[task.name]]
            for task in tasks
        }

    def request(self, scorer: Callable, example: Example) -> Request:
        """What a scorer wants to know of an example."""
        if getattr(scorer, "mode", "generate") == "generate":
            return Answer(example, self.max_new_tokens)
        allowed = self.choices if self.choices is not None else example.choices
        return Choice(example, allowed, getattr(scorer, "per_byte", False))

    def _scored(self, task: Task, scorer: Callable, example: Example, reply: Reply) -> Scored:
        value = score(task.name, task.scorer, scorer, example, reply.text)
        return Scored(task.name, example, reply.text, value, reply.chance, reply.cut)


def mean_score(scored: Sequence[Scored]) -> float:
    """Mean score of a task."""
    return fmean(s.score for s in scored)


def mean_chance(scored: Sequence[Scored]) -> float:
    """The score of pure guessing among the allowed answers, mean over a task's examples; 0 for free answers."""
    return fmean(s.chance for s in scored)


def majority(examples: Sequence[Example]) -> float:
    """The share of the most frequent target: what always saying the same would reach by exact match."""
    return max(Counter(e.target for e in examples).values()) / len(examples)
