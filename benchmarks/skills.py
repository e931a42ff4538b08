"""`skills`: small string and number tasks with exact answers that a checker can verify. Ours.

Whether an input belongs to train, valid or test is decided by a hash of the input, so the splits are disjoint whatever
seed made them, and a model that was warmed up on training inputs has never met a test input.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from cl_toolkit.ranges import SEED, at_least
from cl_toolkit.types import Example, Message, Task

DIGITS, LETTERS = "0123456789", "abcdefghijklmnopqrstuvwxyz"
VOWELS = frozenset("aeiou")


def _next_letter(letter: str) -> str:
    return LETTERS[(LETTERS.index(letter) + 1) % 26]


def _text(alphabet: str) -> Callable[[random.Random, int], str]:
    return lambda rng, n: "".join(rng.choice(alphabet) for _ in range(n))


def _two_numbers(rng: random.Random, n: int) -> str:
    return "+".join("".join(rng.choice(DIGITS) for _ in range(size)) for size in (-(-n // 2), max(1, n // 2)))


SKILLS: dict[str, tuple[Callable[[random.Random, int], str], Callable[[str], str]]] = {
    "sort": (_text(DIGITS), lambda s: "".join(sorted(s))),
    "max": (_text(DIGITS), max),
    "reverse": (_text(LETTERS), lambda s: s[::-1]),
    "shift": (_text(LETTERS), lambda s: "".join(map(_next_letter, s))),
    "add": (_two_numbers, lambda s: str(sum(map(int, s.split("+"))))),
    "vowels": (_text(LETTERS), lambda s: str(sum(c in VOWELS for c in s))),
    "double": (_text(LETTERS), lambda s: "".join(c + c for c in s)),
    "swap": (_text(LETTERS), lambda s: s[-1] + s[1:-1] + s[0] if len(s) > 1 else s),
    "parity": (_text(DIGITS), lambda s: "".join("eo"[int(c) % 2] for c in s)),
    "complement": (_text(DIGITS), lambda s: "".join(str(9 - int(c)) for c in s)),
    "last": (_text(LETTERS), lambda s: s[-1]),
    "rotate": (_text(LETTERS), lambda s: s[1:] + s[0]),
}
"""Name -> (an input of about n characters, its answer)."""


def skill_names() -> list[str]:
    return list(SKILLS)


def split_of(text: str) -> str:
    """The split that an input belongs to: a tenth valid, two tenths test, the rest train."""
    bucket = hashlib.sha256(text.encode()).digest()[0] % 10
    return "valid" if bucket == 0 else "test" if bucket <= 2 else "train"


def with_wrong_answers(splits: dict[str, list[Example]], rng: random.Random) -> dict[str, list[Example]]:
    """The examples with a wrong answer each, `rejected` in their `extra`: the right one with one of its characters replaced by
    another that stands in the task's answers; where there is no other, with one character more."""
    characters = sorted({character for examples in splits.values() for e in examples for character in e.target})

    def wrong(answer: str) -> str:
        place = rng.randrange(len(answer))
        others = [character for character in characters if character != answer[place]]
        return answer[:place] + rng.choice(others) + answer[place + 1 :] if others else answer + answer[-1]

    return {
        split: [replace(e, extra={**e.extra, "rejected": wrong(e.target)}) for e in examples]
        for split, examples in splits.items()
    }


class Skills:
    """A stream of skills. Prompts read `sort 40721`, answers `01247`."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """length: characters of an input (digits, for `add`), the difficulty. *_size: examples per task. rejected: whether each
        example has a wrong answer too, for objectives that learn from pairs. seed: of the data itself, not of a run."""

        length: Annotated[int, at_least(1).up_to(64)] = 5
        train_size: Annotated[int, at_least(1).up_to(1_000_000)] = 1000
        valid_size: Annotated[int, at_least(0).up_to(1_000_000)] = 100
        test_size: Annotated[int, at_least(0).up_to(1_000_000)] = 200
        rejected: bool = False
        seed: Annotated[int, SEED] = 0

    def __init__(self, config: Config):
        self.config = config

    def names(self) -> list[str]:
        return skill_names()

    def version(self, names: Sequence[str]) -> str:
        """It depends on its settings alone."""
        return ""

    def tasks(self, names: Sequence[str], prompt: object = None, repeat: bool = False) -> list[Task]:
        """The named tasks. `repeat` allows an input more than once (endless data for a warm-up)."""
        config = self.config
        sizes = {"train": config.train_size, "valid": config.valid_size, "test": config.test_size}
        return [self._task(name, sizes, repeat) for name in names]

    def _task(self, name: str, sizes: dict[str, int], repeat: bool) -> Task:
        make, solve = SKILLS[name]
        rng = random.Random(f"{self.config.seed}/{name}/{self.config.length}")
        splits: dict[str, list[Example]] = {split: [] for split in sizes}
        seen: set[str] = set()
        attempts = 0
        while any(len(splits[s]) < sizes[s] for s in sizes):
            text = make(rng, self.config.length)
            split = split_of(f"{name} {text}")
            attempts += 1
            if attempts > 200 * sum(sizes.values()) + 1000:
                break  # short inputs: there are no more different ones
            if len(splits[split]) >= sizes[split] or (text in seen and not repeat):
                continue
            seen.add(text)
            splits[split].append(
                Example(
                    id=f"{name}/{split}/{len(splits[split])}",
                    messages=(Message(role="user", content=f"{name} {text}"),),
                    target=solve(text),
                )
            )
        if self.config.rejected:
            splits = with_wrong_answers(splits, random.Random(f"rejected/{self.config.seed}/{name}"))
        parts = {split: tuple(examples) for split, examples in splits.items()}
        return Task(name=name, train=parts["train"], valid=parts["valid"], test=parts["test"])
