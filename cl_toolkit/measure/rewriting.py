"""Scorers of benchmarks that ask for code and for simpler texts (TRACE): how alike two texts are, and SARI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import partial
from statistics import fmean

from cl_toolkit.measure.scorers import Scorer
from cl_toolkit.types import Example

ORDERS = (1, 2, 3, 4)


@partial(Scorer, unit="similarity")
def fuzzy_ratio(example: Example, answer: str) -> float:
    """2 M / T: M characters in matching blocks (Ratcliff & Obershelp 1988), T those of both texts; `fuzz.ratio` of fuzzywuzzy,
    from 0 to 1, not rounded"""
    return SequenceMatcher(None, answer, example.target).ratio()


@partial(Scorer, unit="SARI", references="all")
def sari(example: Example, answer: str) -> float:
    """How well the answer keeps, adds to and deletes from the question, against all right answers (Xu et al. 2016), from 0 to
    1; words are what blanks part, in lower case"""
    return sari_of(example.question, answer, [example.target, *example.extra.get("references", ())])


def sari_of(source: str, answer: str, references: Sequence[str]) -> float:
    """The mean over word n-grams (n from 1 to 4) and over what is kept, deleted and added: F1 of what is kept and added,
    precision of what is deleted; nothing to be kept, deleted or added counts as right. As Hugging Face corrected it:
    the authors' script divides the recall of what is kept by the number of n-grams instead of their count."""
    texts = [text.lower().split() for text in (source, answer, *references)]
    return fmean(fmean(_parts(*(_ngrams(words, n) for words in texts))) for n in ORDERS)


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _parts(source: Counter, answer: Counter, *references: Counter) -> tuple[float, float, float]:
    """(keep, delete, add) for one n; counts of source and answer stand as often as there are references."""
    many = len(references)
    wanted = sum(references, Counter())
    before, after = (Counter({gram: many * count for gram, count in found.items()}) for found in (source, answer))
    kept, deleted = before & after, before - after
    keep, delete = kept & wanted, deleted - wanted
    precision = _share(sum(keep[gram] / kept[gram] for gram in keep), len(kept))
    recall = _share(sum(keep.values()), sum((before & wanted).values()))
    added, new = set(after) - set(before), set(wanted) - set(before)
    right = len(added & set(wanted))
    deletion = _share(sum(delete[gram] / deleted[gram] for gram in delete), len(deleted))
    return _f1(precision, recall), deletion, _f1(_share(right, len(added)), _share(right, len(new)))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
