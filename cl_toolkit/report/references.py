"""What a paper has to cite: entries of `references.bib`, found by the sources that the code names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ENTRY = re.compile(r"^@\w+\{([\w-]+),\n.*?^\}\n", re.MULTILINE | re.DOTALL)
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
AUTHOR_YEAR = re.compile(r"([A-Z][\w-]+)[^;]*? (\d{4})")


@cache
def entries() -> dict[str, str]:
    """Key -> entry, in the order of the file."""
    text = Path(__file__).with_name("references.bib").read_text(encoding="utf-8")
    return {found[1]: found[0] for found in ENTRY.finditer(text)}


def field(entry: str, name: str) -> str:
    """A field of an entry, "" where it has none."""
    found = re.search(rf"^  {name} = \{{(.*?)\}},?$", entry, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def cited(source: str) -> list[str]:
    """Keys of what a source names (`Kirkpatrick et al. 2017, arXiv 1612.00796`): by its arXiv numbers, or without any by first
    author and year, if one entry alone fits."""
    if numbers := ARXIV.findall(source):
        return [key for number in numbers for key, entry in entries().items() if field(entry, "eprint") == number]
    found = AUTHOR_YEAR.search(source)
    if not found:
        return []
    fits = [
        key
        for key, entry in entries().items()
        if field(entry, "author").startswith(f"{found[1]},") and field(entry, "year") == found[2]
    ]
    return fits if len(fits) == 1 else []


def bibliography(keys: Sequence[str], missing: Sequence[str]) -> str:
    """The file: what has no entry as comments, each on one line, then the entries by key. BibTeX knows no comments: it passes
    over all that stands between entries, and one begins with an @."""
    lines = [f"% no entry: {what.replace('@', '(at)')}\n" for what in missing]
    return "".join(lines) + "\n".join(entries()[key] for key in sorted(set(keys)))
