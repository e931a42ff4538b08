"""What a law is: a function that says what was seen of a subject, or raises `Broken`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Broken(Exception):
    """A law does not hold; the message is what was seen."""


class NotApplicable(Exception):
    """A law that says nothing about this subject; the message is why."""


@dataclass(frozen=True)
class Law:
    number: int
    title: str
    why: str
    test: Callable[[Any], str]


@dataclass(frozen=True)
class Result:
    """One law against one subject. passed: None where the law does not apply or is excepted by the subject itself."""

    law: Law
    passed: bool | None
    seen: str


class Laws(dict[int, Law]):
    """The laws of one contract, by number."""

    def law(self, number: int, title: str, why: str) -> Callable[[Callable[[Any], str]], Callable[[Any], str]]:
        """Register a law."""

        def register(test: Callable[[Any], str]) -> Callable[[Any], str]:
            self[number] = Law(number, title, why, test)
            return test

        return register


def judge(tested: Law, subject: Any) -> Result:
    """One law against one subject."""
    if excepted := subject.exceptions.get(tested.number):
        return Result(tested, None, f"excepted: {excepted}")
    try:
        return Result(tested, True, tested.test(subject))
    except NotApplicable as reason:
        return Result(tested, None, f"does not apply: {reason}")
    except Broken as seen:
        return Result(tested, False, str(seen))
    except Exception as error:
        return Result(tested, False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
