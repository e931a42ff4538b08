"""An exam: the examples that a task is scored on, what is asked about them, and the scores that the replies come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

from cl_toolkit.data.spread import spread
from cl_toolkit.measure.scorers import Scorer, as_scorer, score
from cl_toolkit.models.requests import Answer, Choice, Logprobs, Reply, Request
from cl_toolkit.registry import SCORERS
from cl_toolkit.types import Example, Message, Task

if TYPE_CHECKING:
    from cl_toolkit.measure.sections import Evaluate

REMINDED = " after a reminder"
"""What the id of a reminded example ends with: it is another question."""


@dataclass(slots=True)
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


@dataclass(frozen=True)
class Exam:
    """The examples of one task, asked about as its scorer wants. max_new_tokens: of a generated answer."""

    task: Task
    examples: tuple[Example, ...]
    max_new_tokens: int
    _parts: dict[int, Exam] = field(default_factory=dict, init=False, repr=False, compare=False)
    _reminded: dict[int, Exam] = field(default_factory=dict, init=False, repr=False, compare=False)
    _asked: dict[tuple[str, ...] | None, list[Request]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @staticmethod
    def of(task: Task, section: Evaluate) -> Exam:
        """As the config's section `evaluate` says: of one split all, or so many, spread over it."""
        return Exam(task, tuple(spread(getattr(task, section.split), section.limit)), section.max_new_tokens)

    def part(self, size: int) -> Exam:
        """At most so many of its examples, spread over them."""
        if size not in self._parts:
            self._parts[size] = replace(self, examples=tuple(spread(self.examples, size)))
        return self._parts[size]

    def reminded(self, count: int) -> Exam:
        """The same examples with so many of the task's training examples, spread over them, as turns before the question."""
        if count not in self._reminded:
            shown = [e for e in spread(self.task.train, count) if e.messages and not e.images]
            before = tuple(m for e in shown for m in (*e.messages, Message(role="assistant", content=e.target)))
            examples = tuple(replace(e, id=e.id + REMINDED, messages=_after(before, e.messages)) for e in self.examples)
            self._reminded[count] = replace(self, examples=examples)
        return self._reminded[count]

    @property
    def name(self) -> str:
        return self.task.name

    @cached_property
    def scorer(self) -> Scorer:
        """The scorer behind the task's name of it."""
        return as_scorer(SCORERS.get(self.task.scorer, f"task {self.name}: scorer"))

    def ask(self, allowed: tuple[str, ...] | None = None) -> list[Request]:
        """A request per example, the same ones again and again. allowed: what every answer is chosen from instead of its own
        choices."""
        if allowed not in self._asked:
            self._asked[allowed] = self._ask(allowed)
        return self._asked[allowed]

    def _ask(self, allowed: tuple[str, ...] | None) -> list[Request]:
        scorer = self.scorer
        ways: dict[str, Callable[[Example], Request]] = {
            "answer": lambda e: Answer(e, self.max_new_tokens),
            "choices": lambda e: Choice(e, e.choices if allowed is None else allowed, scorer.per_byte),
            "likelihood": Logprobs,
        }
        return [ways[scorer.reads](example) for example in self.examples]

    def read(self, replies: Sequence[Reply]) -> list[Scored]:
        """The replies, scored, in the order of the examples."""
        task, name, scorer = self.name, self.task.scorer, self.scorer
        answered = zip(self.examples, replies, strict=True)
        if scorer.reads == "likelihood":
            values = ((e, r, score(task, name, scorer, e, sum(r.logprobs))) for e, r in answered)
            return [Scored(task, e, "", value, chance=None, weight=len(r.logprobs)) for e, r, value in values]
        return [Scored(task, e, r.text, score(task, name, scorer, e, r.text), r.chance, r.cut) for e, r in answered]

    def value(self, scored: Sequence[Scored]) -> float:
        """What the scores come to."""
        return self.scorer.aggregate([s.score for s in scored], [s.weight for s in scored])

    def majority(self) -> float | None:
        """The share of the most frequent target: what always saying the same would reach by exact match; None where nothing is
        said."""
        if self.scorer.reads == "likelihood":
            return None
        return max(Counter(e.target for e in self.examples).values()) / len(self.examples)


def _after(before: tuple[Message, ...], own: tuple[Message, ...]) -> tuple[Message, ...]:
    """Turns after others, with one system turn, their own."""
    system = own[:1] if own and own[0].role == "system" else ()
    return *system, *(m for m in before if m.role != "system"), *own[len(system) :]


def chance_of(scored: Sequence[Scored]) -> float | None:
    """The score of pure guessing among the allowed answers, mean over a task's examples; 0 for free answers, None where it is
    not known."""
    levels = [s.chance for s in scored if s.chance is not None]
    return fmean(levels) if len(levels) == len(scored) else None
