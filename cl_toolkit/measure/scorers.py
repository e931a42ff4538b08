"""How good a model is on an example, and what a task's examples come to. Most give 0 for a wrong answer and 1 for a right one.

Words: what blanks and punctuation part, in any script; in scripts that write no blanks (Chinese, Japanese, Thai, Lao, Khmer,
Burmese) each character is a word of its own. Punctuation belongs to no word.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from functools import WRAPPER_ASSIGNMENTS, lru_cache, partial
from numbers import Real
from statistics import fmean
from typing import Any, Literal

from cl_toolkit.errors import UserError, quoted, told
from cl_toolkit.types import Example


def mean(scores: Sequence[float], weights: Sequence[float]) -> float:
    """The mean of the scores, each example for one."""
    return fmean(scores)


@dataclass(frozen=True)
class Scorer:
    """How good an answer is, and what the scores of a task's examples come to.

    function: (example, what is read of the model) -> number. What is read: `answer`, the text that the model generates;
    `choices`, the allowed answer that it finds likeliest; `likelihood`, the log-probability (natural, summed over tokens) that
    it gives to the target, in which case an example's weight is its number of tokens (else 1).
    unit: what a number of this scorer is called in a sentence: "accuracy".
    per_byte: choices are compared by their log-probability per byte.
    bounded: every score lies between 0 and 1.
    references: of several right answers (`references` in an example's `extra`) the `best` counts, or the function reads `all`.
    aggregate: (scores, weights) of a task's examples -> the task's number.
    exact: a written answer is right or wrong as a whole.
    parses: whether an answer has the form that is asked for, right or wrong; None where that cannot be told by it alone.
    """

    function: Callable[[Example, Any], float]
    reads: Literal["answer", "choices", "likelihood"] = "answer"
    unit: str = "score"
    higher_is_better: bool = True
    per_byte: bool = False
    bounded: bool = True
    references: Literal["best", "all"] = "best"
    aggregate: Callable[[Sequence[float], Sequence[float]], float] = mean
    exact: bool = False
    parses: Callable[[str], bool] | None = None

    def __post_init__(self) -> None:
        # a scorer is known by its function: `list` prints the docstring, the identity of a result hashes the module
        for name in WRAPPER_ASSIGNMENTS:
            if hasattr(self.function, name):
                object.__setattr__(self, name, getattr(self.function, name))

    def __call__(self, example: Example, read: Any) -> float:
        return self.function(example, read)


def as_scorer(found: Any) -> Scorer:
    """A registered scorer; a plain function of (example, answer) is one with scores from 0 to 1."""
    return found if isinstance(found, Scorer) else Scorer(found)


def score(task: str, name: str, scorer: Scorer, example: Example, read: Any) -> float:
    """What a scorer gives for one example, the best over its right answers where it has several (`references` in its `extra`);
    raises UserError, with scorer, task and example, where it raises or gives anything but a finite number (from 0 to 1 if it is
    bounded; true and false are 1 and 0)."""
    if example.extra and scorer.references == "best" and (references := example.extra.get("references")):
        alone = {key: value for key, value in example.extra.items() if key != "references"}
        each = (replace(example, target=target, extra=alone) for target in (example.target, *references))
        return (max if scorer.higher_is_better else min)(score(task, name, scorer, one, read) for one in each)
    try:
        given = scorer.function(example, read)
        if type(given) is float and 0 <= given <= 1:  # as most are; all that follows takes three times as long
            return given
        value = given.item() if hasattr(given, "item") else given
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a signal is not the scorer's
        raise UserError(f"{_where(task, name, example)}: {told(error, scorer.function)}") from error
    if not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"{_where(task, name, example)}: expected a finite number, got {quoted(given)}")
    if not 0 <= float(value) <= 1 and scorer.bounded:
        raise UserError(
            f"{_where(task, name, example)}: expected a number from 0 to 1, got {quoted(given)}; a scorer with another range "
            "is a Scorer(function, bounded=False)"
        )
    return float(value)


def _where(task: str, name: str, example: Example) -> str:
    return f"task {task}: scorer {name}: example {example.id}"


accuracy = partial(Scorer, unit="accuracy", exact=True)
choosing = partial(Scorer, unit="accuracy", reads="choices")


@accuracy
def exact_match(example: Example, answer: str) -> float:
    """1 if the answer is the target, up to blanks at both ends."""
    return float(answer.strip() == example.target.strip())


WITHOUT_BLANKS = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff])"
)


def split_words(text: str) -> list[str]:
    """The pieces between blanks; of scripts without blanks the characters."""
    return WITHOUT_BLANKS.sub(r" \1 ", text).split()


@lru_cache(maxsize=4096)
def is_punctuation(character: str) -> bool:
    """ASCII's marks and signs, and what Unicode calls punctuation."""
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def normalize(text: str) -> list[str]:
    """Lower-cased words without punctuation and articles, the SQuAD way (Rajpurkar 2016). Where nothing would be left,
    articles stay (the letter A of a choice); where still nothing is left, punctuation too (a sign)."""
    text = text.lower()
    kept = "".join(c for c in text if not is_punctuation(c))
    return split_words(re.sub(r"\b(a|an|the)\b", " ", kept)) or split_words(kept) or text.split()


@lru_cache(maxsize=4096)
def is_of_a_word(character: str) -> bool:
    """Letters, their marks, digits."""
    return unicodedata.category(character)[0] in "LMN" or character == "_"


def words(text: str) -> list[str]:
    """Lower-cased words; punctuation parts them. A text without a word stays as it is."""
    text = text.lower()
    return split_words("".join(c if is_of_a_word(c) else " " for c in text)) or text.split()


@accuracy
def normalized_exact(example: Example, answer: str) -> float:
    """1 if the answer is the target after lower-casing and removing punctuation, articles and extra blanks; where that leaves
    nothing, as it is."""
    return float(normalize(answer) == normalize(example.target))


BLANK = "[ \u00a0\u2009\u202f]"
PLAIN = rf"(?:\d{{1,3}}(?:,\d{{3}})+(?![\d,])|\d{{1,3}}(?:{BLANK}\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+"
NUMBER = re.compile(
    rf"(?P<date>(?<![\d/])(?:\d{{1,2}}/)?\d{{1,2}}/(?:19|20)\d\d(?![\d/]))"
    rf"|(?P<sign>(?<![\d.%)])[-+])?(?:(?P<top>(?<![\d/])\d+)/(?P<bottom>\d+)(?![\d/])"
    rf"|(?P<plain>{PLAIN})(?P<power>[eE][-+]?\d+)?(?![\d]))"
)
EXACT = Context(prec=60, traps=[])


def last_number(text: str) -> Decimal | None:
    """The last number in a text, None without one.

    `#### 1,234`, `1 234`, `.5`, `1e5`, `\u22125` and the simple fraction `1/2` (0.5) are numbers; of `3-5` the last one is
    5, of `1,2` it is 2. A date such as 12/2024 is passed over where there is any other number.
    """
    found, year = None, None
    for match in NUMBER.finditer(text.replace("\u2212", "-")):
        if match["date"]:
            year = Decimal(match["date"].rpartition("/")[2])
        else:
            found = _value(match)
    return year if found is None else found


def _value(match: re.Match[str]) -> Decimal | None:
    """The number that a match stands for; None for a fraction over 0 and for what is too large for any number."""
    sign = -1 if match["sign"] == "-" else 1
    if match["top"]:
        value = EXACT.divide(EXACT.create_decimal(match["top"]), EXACT.create_decimal(match["bottom"]))
    else:
        value = (
            Decimal(re.sub(rf",|{BLANK}", "", match["plain"]))
            if not match["power"]
            else EXACT.create_decimal(re.sub(rf",|{BLANK}", "", match["plain"]) + match["power"])
        )
    return value.copy_sign(Decimal(sign)) if value.is_finite() else None


@partial(accuracy, parses=lambda answer: last_number(answer) is not None)
def numeric(example: Example, answer: str) -> float:
    """1 if the last number of the answer equals the last number of the target: whole numbers exactly, others to a relative
    1e-6."""
    got, wanted = last_number(answer), last_number(example.target)
    if got is None or wanted is None:
        return 0.0
    if got == wanted:
        return 1.0
    if is_whole(got) and is_whole(wanted):
        return 0.0
    room = EXACT.multiply(Decimal("1e-6"), max(Decimal(1), abs(wanted)))
    return float(abs(EXACT.subtract(got, wanted)) <= room)


def is_whole(number: Decimal) -> bool:
    """Whether a number has no fraction."""
    return number == number.to_integral_value()


@choosing
def choices(example: Example, answer: str) -> float:
    """1 if the likeliest of the allowed answers is the target; likelihood is the sum of its tokens' log-probabilities."""
    return float(answer == example.target)


@partial(choosing, per_byte=True)
def choices_norm(example: Example, answer: str) -> float:
    """1 if the allowed answer that is likeliest per byte is the target, so that long answers lose nothing by their length
    (`acc_norm` of the LM evaluation harness)."""
    return float(answer == example.target)


@choosing
def class_accuracy(example: Example, answer: str) -> float:
    """1 if the class with the largest output is the target."""
    return float(answer == example.target)


@partial(Scorer, unit="F1")
def token_f1(example: Example, answer: str) -> float:
    """Harmonic mean of precision and recall over normalised words (Rajpurkar 2016); words as in the module."""
    got, wanted = normalize(answer), normalize(example.target)
    common = sum((Counter(got) & Counter(wanted)).values())
    if not common:
        return float(got == wanted)
    precision, recall = common / len(got), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


@partial(Scorer, unit="ROUGE-L")
def rouge_l(example: Example, answer: str) -> float:
    """F1 of the longest common subsequence over lower-cased words (Lin 2004); words as in the module."""
    got, wanted = words(answer), words(example.target)
    if not got or not wanted:
        return float(got == wanted)
    row = [0] * (len(wanted) + 1)
    for word in got:
        previous = 0
        for j, other in enumerate(wanted, 1):
            previous, row[j] = row[j], previous + 1 if word == other else max(row[j], row[j - 1])
    common = row[-1]
    if not common:
        return 0.0
    precision, recall = common / len(got), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def per_token(scores: Sequence[float], weights: Sequence[float]) -> float:
    """exp of the negative log-likelihood per token, over all tokens of a task; at most exp(700), the largest number."""
    return math.exp(min(math.fsum(scores) / math.fsum(weights), 700.0))


@partial(Scorer, reads="likelihood", unit="perplexity", higher_is_better=False, bounded=False, aggregate=per_token)
def perplexity(example: Example, likelihood: float) -> float:
    """Perplexity of the targets, or of documents, over all tokens of a task, end marks included.

    Of a document every token counts but its first; a long one is read in windows of `prompt.max_prompt_length` tokens, each of
    which knows the last token of the one before. The score of an example is its negative log-likelihood."""
    return -likelihood
