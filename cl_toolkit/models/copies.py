"""Whether answers that a model has written are copies of those that it was trained on.

Alaa et al. 2022, arXiv 2102.08921: a generated point is authentic if it is farther from the training point nearest to it than
that is from its own nearest neighbour in the training set. They measure in an embedding; we by the counts of all sequences of
one to three characters, as one minus their cosine, so that no other model is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cl_toolkit.types import SHOWN

MOST = 1000
"""Written answers whose neighbours are looked for, the first ones."""
ROUNDING = 1e-9
"""Distances that are nearer to each other are the same."""


def copied(written: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """How near written answers are to known ones, as JSON data.

    written: how many there are. exact: how many are a known answer, letter by letter. near: the share that is not authentic, in
    [0, 1]; None where no two answers are known, or none was written. nearest: of those that are no known answer the nearest to
    one, with that one and their distance in [0, 1]; None where there is none.
    """
    answers = set(known)
    told: dict[str, Any] = {"written": len(written), "exact": sum(text in answers for text in written)}
    if not written or len(known) < 2:
        return {**told, "near": None, "nearest": None}
    distances, places, apart = neighbours(written[:MOST], known)
    nearer = [d + ROUNDING < other for d, other in zip(distances, apart, strict=True)]
    new = [i for i, text in enumerate(written[:MOST]) if text not in answers]
    nearest = min(new, key=distances.__getitem__, default=None)
    shown = (
        nearest
        if nearest is None
        else {
            "written": written[nearest][:SHOWN],
            "known": known[places[nearest]][:SHOWN],
            "distance": distances[nearest],
        }
    )
    return {**told, "near": sum(nearer) / len(nearer), "nearest": shown}


def neighbours(written: Sequence[str], known: Sequence[str]) -> tuple[list[float], list[int], list[float]]:
    """Of each written text: its distance to the nearest known one, the place of that one, and the distance of that one to the
    nearest other one that is known."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.neighbors import NearestNeighbors

    counts = CountVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False)
    # between marks, so that an empty text has a sequence too
    rows = counts.fit_transform([f"\x02{text}\x03" for text in (*known, *written)])
    index = NearestNeighbors(metric="cosine", algorithm="brute").fit(rows[: len(known)])
    distances, places = index.kneighbors(rows[len(known) :], 1)
    others, _ = index.kneighbors(rows[places[:, 0]], 2)  # itself, and the other
    return distances[:, 0].tolist(), places[:, 0].tolist(), others[:, 1].tolist()
