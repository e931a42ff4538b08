"""The one error that is meant for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something in a config, a data file or a command is wrong. One line: the place, what was expected, the nearest
    right name. The command line prints it without a traceback and exits with code 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'replay'?"`, or the known names where none is near. Empty when nothing is known."""
    known = sorted(known)
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
