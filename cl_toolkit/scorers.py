"""How good an answer is: `(example, answer) -> number`, 0 wrong and 1 right.

A scorer with `mode = "choices"` is not given generated text but the allowed answer that the model finds likeliest.
"""

from __future__ import annotations

import re
import string
from collections import Counter

from cl_toolkit.types import Example


def exact_match(example: Example, answer: str) -> float:
    """1 if the answer is the target, up to blanks at both ends."""
    return float(answer.strip() == example.target.strip())


def normalize(text: str) -> list[str]:
    """Lower-cased words without punctuation and articles, the SQuAD way (Rajpurkar 2016)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def normalized_exact(example: Example, answer: str) -> float:
    """1 if the answer is the target after lower-casing and removing punctuation, articles and extra blanks."""
    return float(normalize(answer) == normalize(example.target))


NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def last_number(text: str) -> float | None:
    """The last number in a text: `#### 1,234` gives 1234, `1/2` gives 0.5; None without one."""
    found = NUMBER.findall(text)
    if not found:
        return None
    numerator, _, denominator = found[-1].replace(",", "").partition("/")
    if denominator and float(denominator) == 0:
        return None
    return float(numerator) / float(denominator or 1)


def numeric(example: Example, answer: str) -> float:
    """1 if the last number of the answer equals the last number of the target to a relative 1e-6."""
    got, wanted = last_number(answer), last_number(example.target)
    return float(got is not None and wanted is not None and abs(got - wanted) <= 1e-6 * max(1.0, abs(wanted)))


def choices(example: Example, answer: str) -> float:
    """1 if the likeliest of the allowed answers is the target; likelihood is the sum of its tokens' log-probabilities."""
    return float(answer == example.target)


choices.mode = "choices"


def class_accuracy(example: Example, answer: str) -> float:
    """1 if the class with the largest output is the target."""
    return float(answer == example.target)


class_accuracy.mode = "choices"


def token_f1(example: Example, answer: str) -> float:
    """Harmonic mean of precision and recall over normalised words (Rajpurkar 2016)."""
    got, wanted = normalize(answer), normalize(example.target)
    common = sum((Counter(got) & Counter(wanted)).values())
    if not common:
        return float(got == wanted)
    precision, recall = common / len(got), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def rouge_l(example: Example, answer: str) -> float:
    """F1 of the longest common subsequence over lower-cased words (Lin 2004)."""
    got, wanted = answer.lower().split(), example.target.lower().split()
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
