"""Score a model on tasks, as each task's scorer wants: by what it answers, by what it chooses, by how likely the target is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from cl_toolkit.engine.processes import Processes
from cl_toolkit.measure.answers import Answers
from cl_toolkit.measure.scorers import Scorer, as_scorer, score
from cl_toolkit.models.requests import Answer, Choice, Logprobs, Reply, Request
from cl_toolkit.registry import SCORERS
from cl_toolkit.types import Example, Task, spread

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.models.kind import Codec


@dataclass(frozen=True)
class Scored:
    """One example, answered and scored. chance: the score of pure guessing, 1 / number of allowed answers where the answer
    was chosen, None where it is not known. cut: a generated answer that did not end within `max_new_tokens`. weight: what the
    scorer's aggregate weighs the score by."""

    task: str
    example: Example
    answer: str
    score: float
    chance: float | None = 0.0
    cut: bool = False
    weight: float = 1.0


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
        scorers = {task.name: scorer_of(task) for task in tasks}
        examples = {task.name: self.examples(task, limit) for task in tasks}
        # within one length the order of their names, whatever order the tasks come in
        work = [(name, e) for name in sorted(examples) for e in examples[name]]
        replies = self.answers(model, [self.request(scorers[name], e) for name, e in work])
        found = {(name, e.id): reply for (name, e), reply in zip(work, replies, strict=True)}
        return {
            task.name: [self._scored(task, scorers[task.name], e, found[task.name, e.id]) for e in examples[task.name]]
            for task in tasks
        }

    def request(self, scorer: Scorer, example: Example) -> Request:
        """What a scorer wants to know of an example."""
        allowed = self.choices if self.choices is not None else example.choices
        return {
            "answer": lambda: Answer(example, self.max_new_tokens),
            "choices": lambda: Choice(example, allowed, scorer.per_byte),
            "likelihood": lambda: Logprobs(example),
        }[scorer.reads]()

    def _scored(self, task: Task, scorer: Scorer, example: Example, reply: Reply) -> Scored:
        if scorer.reads == "likelihood":
            value = score(task.name, task.scorer, scorer, example, sum(reply.logprobs))
            return Scored(task.name, example, "", value, chance=None, weight=len(reply.logprobs))
        value = score(task.name, task.scorer, scorer, example, reply.text)
        return Scored(task.name, example, reply.text, value, reply.chance, reply.cut)


def scorer_of(task: Task) -> Scorer:
    """The scorer behind a task's name of it."""
    return as_scorer(SCORERS.get(task.scorer, f"task {task.name}: scorer"))


def score_of(task: Task, scored: Sequence[Scored]) -> float:
    """What the scores of a task's examples come to."""
    return scorer_of(task).aggregate([s.score for s in scored], [s.weight for s in scored])


def chance_of(scored: Sequence[Scored]) -> float | None:
    """The score of pure guessing among the allowed answers, mean over a task's examples; 0 for free answers, None where it is
    not known."""
    levels = [s.chance for s in scored]
    return None if None in levels else fmean(levels)


def majority(examples: Sequence[Example]) -> float:
    """The share of the most frequent target: what always saying the same would reach by exact match."""
    return max(Counter(e.target for e in examples).values()) / len(examples)
