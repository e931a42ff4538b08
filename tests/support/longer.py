"""Which parameters of a test are tried always, and which in `make test-long` alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

AT_EACH_HOOK = ("replay", "ewc", "lwf", "agem", "merge")
"""A strategy that changes batches, one with a penalty, one with a term, one that edits the gradient, one that owns the weights:
where all of them work, the others are tried less often."""


def long_but(quick: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """The values of a test's parameter, or of several as tuples; all but the quick ones are marked `long`."""

    def marked(value: Any) -> Any:
        parts = value if isinstance(value, tuple) else (value,)
        return pytest.param(*parts, marks=() if value in quick else pytest.mark.long)

    return [marked(value) for value in values]
