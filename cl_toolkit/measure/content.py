"""Whether an answer says the right thing, its form forgiven. Ours, after the two views of SEFE (Chen et al. 2025, arXiv
2505.02486), which has a language model judge what is said; here rules do, so that a score can be made again."""

from __future__ import annotations

import re
from functools import partial

from cl_toolkit.measure.scorers import NUMBER, Scorer, last_number, normalize, numeric
from cl_toolkit.types import Example

OPTION = re.compile(r"^\s*\(?([A-Za-z])[.):]\s*(\S.*?)\s*$", re.MULTILINE)
"""A line of a question that offers an answer: `A. red`, `(b) blue`."""
NAMED = (
    re.compile(r"^\W*([A-Za-z])\W*$"),
    re.compile(r"^\W*([A-Z])[.):]"),
    re.compile(r"\(([A-Za-z])\)"),
    re.compile(r"(?i)\b(?:answer|option|choice)(?: is)?:? ?([a-z])(?=\W*$|[.,;:)\n])"),
)
"""How an answer names an option by its letter: alone, before its text, in brackets, after a word for it."""


@partial(Scorer, unit="accuracy", exact=True)
def content(example: Example, answer: str) -> float:
    """1 if the answer says the target in whatever form: a last number that is equal; of several options the right one and no
    other, by letter or text; else words that hold those of the target side by side, lower-cased and without punctuation and
    articles. Generous where a target is short: an answer that lists everything holds it."""
    if NUMBER.fullmatch(example.target.strip()) and last_number(answer) is not None:
        return numeric(example, answer)
    if rivals := options(example):
        return float(named(answer, rivals) == {example.target})
    return float(holds(normalize(answer), normalize(example.target)))


def options(example: Example) -> dict[str, tuple[str, ...]]:
    """Of an example whose answer is one of several: each allowed answer -> what else it is called; {} for any other. The
    question's own list joins letters and texts."""
    if not example.choices or example.target not in example.choices:
        return {}
    listed = {letter.upper(): text for letter, text in OPTION.findall(example.question)}
    letters = {text.lower(): letter for letter, text in listed.items()}
    found = {}
    for choice in example.choices:
        other = listed.get(choice.strip().upper()) or letters.get(choice.strip().lower())
        found[choice] = (choice, *([other] if other else []))
    return found


def named(answer: str, rivals: dict[str, tuple[str, ...]]) -> set[str]:
    """The allowed answers that an answer names. One whose words are part of another's that is named too does not count:
    `very good` does not name `good`."""
    said, letters = normalize(answer), {m.upper() for way in NAMED for m in way.findall(answer)}
    names: dict[str, list[str]] = {}
    for choice, called in rivals.items():
        for name in called:
            if len(name.strip()) == 1 and name.strip().isalpha():
                if name.strip().upper() in letters:
                    names.setdefault(choice, [])
            elif holds(said, normalize(name)):
                names[choice] = max(names.get(choice, []), normalize(name), key=len)
    return {c for c, w in names.items() if not any(w and w != other and holds(other, w) for other in names.values())}


def holds(words: list[str], part: list[str]) -> bool:
    """Whether some words hold others side by side."""
    return any(words[i : i + len(part)] == part for i in range(len(words) - len(part) + 1)) if part else not words


def valid(scorer: Scorer, example: Example, answer: str) -> bool | None:
    """Whether an answer has the form that is asked for, right or wrong; None where that cannot be told."""
    if scorer.parses is not None:
        return scorer.parses(answer)
    if example.choices:
        return any(scorer(Example(id=example.id, target=choice), answer) for choice in example.choices)
    return None
