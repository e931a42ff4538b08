"""The one error that is meant for people, and how things are named in it."""

from __future__ import annotations

import difflib
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).parent)


class UserError(Exception):
    """Something in a config, a data file or a command is wrong. One line: the place, what was expected, the nearest
    right name. The command line prints it without a traceback and exits with code 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'replay'?"`, or the known names (the first of them, where there are many) where none is near. Empty
    when nothing is known. Where nothing is near as it is written, capitals do not count."""
    known, name = sorted(set(known)), name.replace("-", "_")[:80]
    plain = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name, known, n=1)
    near = near or [plain[other] for other in difflib.get_close_matches(name.lower(), plain, n=1)]
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {listed(known)}" if known else ""


LISTED = 160
"""Characters of a list of names in a message."""


def listed(names: Iterable[str]) -> str:
    """Names with commas between, as many as fit; of the others the number."""
    names = list(names)
    shown = names
    while len(shown) > 1 and len(", ".join(shown)) > LISTED:
        shown = shown[: len(shown) // 2]
    rest = len(names) - len(shown)
    return short(", ".join(shown), LISTED) + (f" and {rest} more" if rest else "")


def short(text: str, length: int = 80) -> str:
    """A text on one line, cut where it is long."""
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= length else f"{text[: length - 1]}…"


def quoted(value: Any, length: int = 80) -> str:
    """A value as Python writes it, short enough for a message."""
    try:
        return short(repr(value), length)
    except Exception:  # a guest's own repr, or a number of too many digits
        return f"a {type(value).__name__}"


@contextmanager
def guest(where: str, thing: Any) -> Iterator[None]:
    """Whatever a guest's code raises, its exit included, is told in one line with its place.

    where: the key or file to name; thing: the class, object or module that is called.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a signal is not the guest's
        raise UserError(f"{where}: {told(error, thing)}") from error


def told(error: BaseException, thing: Any) -> str:
    """An exception of a guest's code in one line: whose, what, where."""
    name = thing if isinstance(thing, str) else getattr(thing, "__qualname__", type(thing).__qualname__)
    own = (
        thing if isinstance(thing, str) else getattr(sys.modules.get(getattr(thing, "__module__", "")), "__file__", "")
    )
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("<frozen", HERE))]
    frames = [f for f in frames if f.filename == own] or frames
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{name}: {short(' '.join(what.split()), 160)}{place}"


def refuse_doubles(names: Sequence[Any], where: str) -> None:
    """Nothing is run twice, so nothing may be named twice."""
    for name, times in Counter(names).items():
        if times > 1:
            raise UserError(f"{where}: {short(str(name))} is given twice")
