"""Whether a model has kept what it could do: each task's last score against the one right after it was learned, each anchor's
against the one at the start."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cl_toolkit.errors import UserError

SLACK = 1e-9
"""What rounding may make of a difference of two scores."""


@dataclass(frozen=True)
class Kept:
    """A task or an anchor. before: its score when it was learned, of an anchor at the start; now: the last one; start: the one
    before any training; None where it was not scored. harmed: whether it came out of its own training worse than it was at the
    start, by more than the margin: then there was little to keep. lost: how much worse it is now, of perplexity and the like
    (lower is better) as a share of what it was; None where that cannot be said, which counts as not kept."""

    name: str
    anchor: bool
    before: float | None
    now: float | None
    lost: float | None
    kept: bool
    start: float | None = None
    harmed: bool = False

    def plain(self) -> dict[str, Any]:
        """As JSON data, which has no infinity."""
        return {**asdict(self), "lost": self.lost if self.lost is not None and math.isfinite(self.lost) else None}


def gate(record: Mapping[str, Any], margin: float) -> list[Kept]:
    """Every task that was learned, and every anchor, those that lost most first. Raises UserError for a run that is not over,
    for one that has neither, and for a margin that is none."""
    if not (math.isfinite(margin) and margin >= 0):
        raise UserError(f"--margin {margin}: expected a number from 0 on, such as 0.02")
    if record["status"] != "finished":
        raise UserError(f"the run is {record['status']}, not finished; repeat the command that began it")
    rows = [*_tasks(record, margin), *_anchors(record, margin)]
    if not rows:
        raise UserError("the run has learned no task and has no anchors, so that there is nothing to keep")
    return sorted(rows, key=lambda row: -math.inf if row.lost is None else -row.lost)


def _tasks(record: Mapping[str, Any], margin: float) -> Iterator[Kept]:
    for column, name in enumerate(record["tasks"]):
        learned = [stage["row"] for stage in record["stages"] if name in stage["made_of"]]
        if learned:
            scores = [row[column] for row in record["matrix"]]
            yield _kept(name, False, scores, min(learned), record["higher_is_better"][column], margin)


def _anchors(record: Mapping[str, Any], margin: float) -> Iterator[Kept]:
    if record["anchors"] and "anchor_higher_is_better" not in record:
        raise UserError("the record does not say in which direction its anchors are scored (it is older); run it again")
    for column, name in enumerate(record["anchors"]):
        scores = [row[column] for row in record["anchor_matrix"]]
        yield _kept(name, True, scores, 0, record["anchor_higher_is_better"][column], margin)


def _kept(name: str, anchor: bool, scores: Sequence[Any], row: int, higher: bool, margin: float) -> Kept:
    """scores: of each row of the matrix, a number or a word. row: the one to compare the last with."""
    start, before, now = (
        cell if isinstance(cell, (int, float)) else None for cell in (scores[0], scores[row], scores[-1])
    )
    lost, learning = _lost(before, now, higher), _lost(start, before, higher)
    kept = lost is not None and lost <= margin + SLACK
    return Kept(name, anchor, before, now, lost, kept, start, learning is not None and learning > margin + SLACK)


def _lost(before: float | None, now: float | None, higher: bool) -> float | None:
    """How much worse `now` is, where lower is better as a share; None where it cannot be said."""
    if before is None or now is None:
        return None
    if now == before:
        return 0.0
    if higher:
        return before - now
    return (now - before) / abs(before) if before else math.copysign(math.inf, now - before)
