"""One line: what the tasks are. Source and license of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from cl_toolkit import at_least
from cl_toolkit.types import Example, Message, Task

RULES: dict[str, Callable[[int], str]] = {
    "parity": lambda n: "odd" if n % 2 else "even",
    "size": lambda n: "large" if n >= 500 else "small",
    "thirds": lambda n: ("none", "one", "two")[n % 3],
}
"""A task -> the answer to a number. Replace them by your data."""


class MyIdea:
    """Questions about numbers below 1000, each with a few allowed answers."""

    inputs = "conversations"  # or documents (Example.text), or arrays (Example.x, y)

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """train_size: examples per task; a third as many are valid, and a third test."""

        train_size: Annotated[int, at_least(3).up_to(600)] = 300

    def __init__(self, config: Config):
        self.config = config

    def names(self) -> list[str]:
        return list(RULES)

    def tasks(self, names: Sequence[str], prompt: object = None) -> list[Task]:
        """The named tasks, in that order; the same for whatever order or choice of names."""
        return [self._task(name) for name in names]

    def _task(self, name: str) -> Task:
        n, size = self.config.train_size, self.config.train_size // 3
        numbers = [i * 7 % 1000 for i in range(1000)]  # each once; no number is in two splits
        splits = {"train": numbers[:n], "valid": numbers[n : n + size], "test": numbers[n + size : n + 2 * size]}
        examples = {split: tuple(self._examples(name, chosen)) for split, chosen in splits.items()}
        return Task(name=name, scorer="choices", **examples)

    def _examples(self, name: str, numbers: Sequence[int]) -> Iterator[Example]:
        choices = tuple(dict.fromkeys(map(RULES[name], range(1000))))
        for number in numbers:
            question = Message(role="user", content=f"{name} of {number}")
            target = RULES[name](number)
            yield Example(id=f"{name}/{number}", messages=(question,), target=target, choices=choices)
