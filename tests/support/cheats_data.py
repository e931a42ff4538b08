"""Streams and scorers that blunder, each in one way. The comment names the law that must catch it."""

import itertools
import random
from dataclasses import dataclass, replace

import torch

from cl_toolkit import Scorer
from cl_toolkit.types import Example, Message, Task

COUNTER = itertools.count()


class Words:
    """An honest stream: three tasks of yes and no."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """n: training examples."""

        n: int = 6

    def __init__(self, config):
        self.config = config

    def names(self):
        return ["a", "b", "c"]

    def tasks(self, names, prompt=None):
        return [self.task(name) for name in names]

    def task(self, name):
        sizes = {"train": self.config.n, "valid": 2, "test": 3}
        return Task(name=name, scorer="choices", **{s: tuple(self.examples(name, s, n)) for s, n in sizes.items()})

    def examples(self, name, split, n):
        for i in range(n):
            yield Example(
                id=f"{name}/{split}/{i}",
                messages=(Message(role="user", content=f"{name} {split} {i}?"),),
                target=("yes", "no")[i % 2],
                choices=("yes", "no"),
            )


class NamesATaskTwice(Words):  # 1
    def names(self):
        return ["a", "b", "a"]


class IsReadOnce(Words):  # 2
    def examples(self, name, split, n):
        return (replace(e, target=f"{next(COUNTER)}", choices=None) for e in super().examples(name, split, n))


class ShufflesWithWhatEverybodyHas(Words):  # 2
    def examples(self, name, split, n):
        return random.sample(list(super().examples(name, split, n)), n)


class NumbersItsTasks(Words):  # 3
    def tasks(self, names, prompt=None):
        return [
            replace(t, train=tuple(replace(e, extra={"task": i}) for e in t.train))
            for i, t in enumerate(super().tasks(names, prompt))
        ]


class CountsFromZeroInEachTask(Words):  # 4
    def examples(self, name, split, n):
        return (replace(e, id=e.id.partition("/")[2]) for e in super().examples(name, split, n))


class TestsOnTheTrainingData(Words):  # 5
    def examples(self, name, split, n):
        content = (Message(role="user", content=f"{name}?"),)
        return (replace(e, messages=content, target="yes") for e in super().examples(name, split, n))


class HasNothingToBeScoredOn(Words):  # 6
    def task(self, name):
        return replace(super().task(name), test=())


class SaysThatItHasArrays(Words):  # 7
    inputs = "arrays"


class HasAWordOfItsOwn(Words):  # 7
    inputs = "sentences"


class ForbidsItsTarget(Words):  # 8
    def examples(self, name, split, n):
        return (replace(e, target="maybe") for e in super().examples(name, split, n))


class ChoosesAmongNothing(Words):  # 8
    def examples(self, name, split, n):
        return (replace(e, choices=None) for e in super().examples(name, split, n))


class DrawsFromWhatEverybodyHas(Words):  # 9
    def task(self, name):
        torch.rand(1)
        return super().task(name)


class KeepsAnObject(Words):  # 10
    def examples(self, name, split, n):
        return (replace(e, extra={"tags": {1, 2}}) for e in super().examples(name, split, n))


STREAMS = {
    "NamesATaskTwice": 1,
    "IsReadOnce": 2,
    "ShufflesWithWhatEverybodyHas": 2,
    "NumbersItsTasks": 3,
    "CountsFromZeroInEachTask": 4,
    "TestsOnTheTrainingData": 5,
    "HasNothingToBeScoredOn": 6,
    "SaysThatItHasArrays": 7,
    "HasAWordOfItsOwn": 7,
    "ForbidsItsTarget": 8,
    "ChoosesAmongNothing": 8,
    "DrawsFromWhatEverybodyHas": 9,
    "KeepsAnObject": 10,
}


def shares_letters(example, answer):
    """An honest scorer: the share of the target's letters that the answer has, if it is no longer."""
    if len(answer) > len(example.target):
        return 0.0
    return sum(a == b for a, b in zip(answer, example.target, strict=False)) / max(1, len(example.target))


def counts_words_of(example, answer):
    """An honest scorer that needs a field of the data: the share of its words that are said."""
    wanted = example.extra["words"]
    return sum(word in answer.split() for word in wanted) / len(wanted)


def counts_letters(example, answer):  # 1
    return len(answer) / 10


def divides(example, answer):  # 1
    return example.target.count("a") / len(answer)


@Scorer
def likes_more(example, answer):  # 2
    return min(1.0, answer.count(example.target) / 2)


upside_down = Scorer(lambda example, answer: float(answer == example.target), higher_is_better=False)  # 2


def is_content(example, answer):  # 3
    return 0.5


unlikelier_is_better = Scorer(lambda example, likelihood: -likelihood, reads="likelihood", bounded=False)  # 3


def gets_tired(example, answer):  # 4
    return float(answer == example.target) / (1 + next(COUNTER))


def rolls_dice(example, answer):  # 4
    return float(answer == example.target) * random.random()


def takes_notes(example, answer):  # 5
    example.extra.setdefault("notes", []).append(answer)
    return float(answer == example.target)


adds_up = Scorer(lambda example, answer: float(answer == example.target), aggregate=lambda s, w: sum(s))  # 6
takes_the_first = Scorer(lambda example, answer: float(answer == example.target), aggregate=lambda s, w: s[0])  # 6

SCORERS = {
    "counts_letters": 1,
    "divides": 1,
    "likes_more": 2,
    "upside_down": 2,
    "is_content": 3,
    "unlikelier_is_better": 3,
    "gets_tired": 4,
    "rolls_dice": 4,
    "takes_notes": 5,
    "adds_up": 6,
    "takes_the_first": 6,
}
