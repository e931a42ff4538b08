"""The range of a setting, declared on its field and checked where settings are read:

    weight: Annotated[float, at_least(0)] = 1.0
    share: Annotated[float, at_least(0).below(1)] = 0.5
    size: Annotated[int, at_least(1)] | None = None

A number without a range must be finite, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; an open end does not belong to them. `also`: one number beside the range, with a
    meaning of its own."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    also: float | None = None

    def up_to(self, high: float) -> Range:
        """The same range with a largest number."""
        return replace(self, high=high, high_open=False)

    def below(self, high: float) -> Range:
        """The same range under a number that does not belong to it."""
        return replace(self, high=high, high_open=True)

    def or_(self, also: float) -> Range:
        """The same range and one number more, such as -1 for no limit."""
        return replace(self, also=also)

    def __contains__(self, value: float) -> bool:
        if self.also is not None and value == self.also:
            return True
        if self.low is not None and (value <= self.low if self.low_open else value < self.low):
            return False
        return self.high is None or (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        beside = "" if self.also is None else f"{self.also:g} or "
        if self.high is None:
            return f"{beside}a number above {self.low:g}" if self.low_open else f"{beside}{self.low:g} or more"
        left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"{beside}a number in {left}{_short(self.low)}, {_short(self.high)}{right}"


def _short(number: float | None) -> str:
    if number is None:
        return "-inf"
    return "2^63" if number == 2**63 else f"{number:,}" if isinstance(number, int) else f"{number:g}"


def at_least(low: float) -> Range:
    """That number or more."""
    return Range(low=low)


def above(low: float) -> Range:
    """More than that number."""
    return Range(low=low, low_open=True)


SHARE = at_least(0).up_to(1)
"""A part of a whole."""
SEED = at_least(0).below(2**63)
"""What random generators take."""


def refuse_idle(settings: Any, idle: bool, why: str, *names: str) -> None:
    """Raise ValueError for one of these settings of a dataclass that is not as it is by default, where it would do nothing."""
    for default in fields(settings) if idle else ():
        if default.name in names and (value := getattr(settings, default.name)) != default.default:
            raise ValueError(f"{default.name}: {value} does nothing {why}")
