"""One line: what is measured. Paper, or "ours"."""

from __future__ import annotations

from cl_toolkit.types import Example


def my_idea(example: Example, answer: str) -> float:
    """The share of the target's words that the answer begins with, from 0 to 1. Replace this rule by yours.

    With another range, unit or direction it is a `cl_toolkit.Scorer(function, ...)`.
    """
    wanted, got = example.target.split(), answer.split()
    right = 0
    for mine, theirs in zip(got, wanted, strict=False):
        if mine != theirs:
            break
        right += 1
    return right / max(len(wanted), len(got), 1) if wanted or got else 1.0
