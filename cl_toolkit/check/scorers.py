"""The laws of scorers: numbers that can be compared, and that know right from wrong."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from typing import Any

from cl_toolkit.check.law import Broken, Laws, NotApplicable
from cl_toolkit.check.runs import Subject, global_states, moved
from cl_toolkit.config.typed import typed
from cl_toolkit.data.store import example_to_plain
from cl_toolkit.errors import UserError, quoted
from cl_toolkit.measure.scorers import Scorer, as_scorer, score
from cl_toolkit.types import Example, Message

LAWS = Laws()
law = LAWS.law

TARGETS = {"42": "7", "yes": "no", "a red house": "two blue boats", "-3.5": "12", "日本": "中国", "C": "B"}
"""A target -> an answer that is wrong by any measure."""
ODD = ("", " ", "\n", "½ 🎈 \u2067א", "!?", "nan", "-" * 50, "word " * 3000, "9" * 400)
LIKELIHOODS = (-0.0, -0.01, -3.5, -80.0, -1e6)
"""Log-probabilities, from better to worse."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What can be said beside a scorer's name. extra: fields of its own that it reads of an example (`example.extra`)."""

    extra: dict[str, Any] = field(default_factory=dict)


class ScorerSubject(Subject):
    """A scorer, asked about a few answers."""

    def __init__(self, reference: str, thing: Any, settings: Mapping[str, Any] | None = None):
        super().__init__(reference, thing, settings)
        self.scorer: Scorer = as_scorer(thing)
        asked = typed(Asked, self.settings, "scorer", "check")
        self.examples = tuple(self.example(target, asked.extra) for target in TARGETS)

    def example(self, target: str, extra: Mapping[str, Any]) -> Example:
        """A question that is answered by the target."""
        question, choices = (Message(role="user", content="Which?"),), (target, TARGETS[target])
        return Example(id=f"check/{target}", messages=question, target=target, choices=choices, extra=extra)

    def value(self, example: Example, read: Any) -> float:
        """One score."""
        try:
            return score("check", self.reference, self.scorer, example, read)
        except UserError as error:
            raise Broken(str(error).removeprefix(f"task check: scorer {self.reference}: ")) from error

    def better(self, a: float, b: float) -> bool:
        """Whether a score is better than another, by its own direction."""
        return a > b if self.scorer.higher_is_better else a < b

    def asked(self) -> list[tuple[Example, Any]]:
        """What it is asked about: examples and what is read of a model."""
        if self.scorer.reads == "likelihood":
            return list(product(self.examples, LIKELIHOODS))
        odd = ODD if self.scorer.reads == "answer" else ()
        return [(e, a) for e in self.examples for a in dict.fromkeys((e.target, *TARGETS, *TARGETS.values(), *odd))]


def targets_alone(subject: ScorerSubject) -> None:
    """The law is about scorers that compare an answer with the target."""
    if subject.scorer.reads == "likelihood":
        raise NotApplicable("it reads a likelihood, not an answer")
    other = {e.id: replace(e, target=TARGETS[e.target]) for e in subject.examples}
    if all(subject.value(e, answer) == subject.value(other[e.id], answer) for e, answer in subject.asked()):
        raise NotApplicable("it does not look at the target")


@law(1, "it gives a number, whatever was said", "models say anything; one score that is none ends a run of hours")
def numbers(subject: ScorerSubject) -> str:
    given = [subject.value(example, read) for example, read in subject.asked()]
    return f"{len(given)} scores from {min(given):g} to {max(given):g}, of empty, long, foreign and odd answers too"


@law(2, "no answer is better than the target", "a model is trained to say the target")
def best(subject: ScorerSubject) -> str:
    targets_alone(subject)
    for example in subject.examples:
        own = subject.value(example, example.target)
        for _, answer in (pair for pair in subject.asked() if pair[0] is example):
            if subject.better(subject.value(example, answer), own):
                raise Broken(
                    f"to the target {example.target!r} the answer {quoted(answer, 30)} scores "
                    f"{subject.value(example, answer):g}, the target itself {own:g}; is higher_is_better as it should be?"
                )
    top = [subject.value(example, example.target) for example in subject.examples]
    limit = 1.0 if subject.scorer.higher_is_better else 0.0
    if subject.scorer.bounded and limit not in top:
        raise Broken(f"the targets themselves score {', '.join(f'{v:g}' for v in top)}, and none of them {limit:g}")
    return f"{len(subject.examples)} targets, none beaten by any of {len(subject.asked()) // len(subject.examples)} answers"


@law(3, "it tells right from wrong", "a score that is always the same measures nothing")
def discerning(subject: ScorerSubject) -> str:
    if subject.scorer.reads == "likelihood":
        given = [subject.value(subject.examples[0], read) for read in LIKELIHOODS]
        if any(subject.better(worse, good) for good, worse in pairwise(given)):
            raise Broken(f"a less likely target scores better: {given}; is higher_is_better as it should be?")
        if len(set(given)) == 1:
            raise Broken(f"whatever the likelihood, it is {given[0]:g}")
        return "the likelier the target, the better"
    try:
        targets_alone(subject)
    except NotApplicable:
        values = {subject.value(example, answer) for example, answer in subject.asked()}
        if len(values) == 1:
            raise Broken(f"whatever is said, it is {values.pop():g}") from None
        raise
    told = [
        e for e in subject.examples if subject.better(subject.value(e, e.target), subject.value(e, TARGETS[e.target]))
    ]
    if not told:
        raise Broken(f"{TARGETS['42']!r} scores what {'42'!r} does, where the target is '42'; and so on for all")
    return f"right is better than wrong for {len(told)} of {len(subject.examples)} targets"


@law(4, "the same answer has the same score", "or the curve moves while the model stands still")
def steady(subject: ScorerSubject) -> str:
    before, asked = global_states(), subject.asked()
    first = [subject.value(*pair) for pair in asked]
    if drawn := moved(before):
        raise Broken(f"it draws from the global generator of {drawn[0]}")
    again = [subject.value(*pair) for pair in reversed(asked)][::-1]
    for (example, read), one, two in zip(asked, first, again, strict=True):
        if one != two:
            raise Broken(f"to {example.target!r} the answer {quoted(read, 30)} scores {one:g}, and later {two:g}")
    return f"{len(asked)} scores, twice, forwards and backwards"


@law(5, "it leaves the example as it is", "the next task rehearses that example")
def untouched(subject: ScorerSubject) -> str:
    for example, read in subject.asked():
        own = replace(example, extra={**example.extra, "notes": ["a"]})
        before = copy.deepcopy(example_to_plain(own))
        subject.value(own, read)
        if example_to_plain(own) != before:
            raise Broken(f"{example.id} is another one after it was scored")
    return "every field is as it was"


@law(
    6, "a task's number comes from its examples", "a task with more examples, or in another order, is no better for it"
)
def aggregate(subject: ScorerSubject) -> str:
    values = sorted({subject.value(example, read) for example, read in subject.asked()})
    weights = [float(1 + i % 3) for i in range(len(values))]
    gather = subject.scorer.aggregate
    for value in values:
        if not close(gather([value], [1.0]), gather([value] * 3, [1.0] * 3)):
            raise Broken(f"three examples of score {value:g} come to another number than one of them")
    whole, backwards = gather(values, weights), gather(values[::-1], weights[::-1])
    if not close(whole, backwards):
        raise Broken(f"in another order the same scores come to {backwards:g} instead of {whole:g}")
    ends = sorted(gather([value], [1.0]) for value in (values[0], values[-1]))
    if not (ends[0] <= whole <= ends[1] or close(whole, ends[0]) or close(whole, ends[1])):
        raise Broken(
            f"scores from {values[0]:g} to {values[-1]:g} come to {whole:g}, outside of {ends[0]:g} to {ends[1]:g}"
        )
    same = all(close(gather([value], [1.0]), value) for value in values)
    return "one example's number is its score" if same else f"one example of score {values[0]:g} comes to {ends[0]:g}"


def close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-9 * max(1.0, abs(a), abs(b))
