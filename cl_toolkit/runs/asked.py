"""What equal weights are asked in the same pass is answered once: in a run, and among the runs of a comparison."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_toolkit.engine.access import scoring_dtype
from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters
from cl_toolkit.models.kind import fingerprint
from cl_toolkit.models.requests import Reply, Request
from cl_toolkit.runs import checkpoint
from cl_toolkit.runs.identity import without_strategies

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.runs.run import Run


class Asked:
    """Asks a run's model what rows of the matrix want to know, all of a pass or nothing of it: a part of it alone would go
    through the model in other batches, and with other last bits.

    folder: where the runs of a comparison leave what all of them may ask, the start model and the one after the first task;
    None: nowhere. reused: passes that were not made.
    """

    def __init__(self, run: Run, folder: Path | None):
        self.run, self.folder = run, folder
        self.last: tuple[str, list[Reply]] = ("", [])
        self.reused = 0

    def __call__(self, model: nn.Module, requests: Sequence[Request]) -> list[Reply]:
        """The replies, in the order of the requests."""
        distinct = list({request.key: request for request in requests}.values())
        found = dict(zip((request.key for request in distinct), self.distinct(model, distinct), strict=True))
        return [found[request.key] for request in requests]

    def distinct(self, model: nn.Module, requests: Sequence[Request]) -> list[Reply]:
        """The replies to requests of which no two are the same."""
        if not requests:
            return []
        key = self.key(model, requests)
        replies = self.last[1] if self.last[0] == key else self._left(key)
        if replies is None:
            replies = self.run.answers(model, requests)
            self._leave(key, replies)
        else:
            self.reused += 1
        self.last = key, replies
        return replies

    def key(self, model: nn.Module, requests: Sequence[Request]) -> str:
        """Everything that decides the replies."""
        run, plain = self.run, self.run.config.plain
        grown = {*model.state_dict()} != run.start_names  # a strategy or an adapter says how
        parts = [
            *(fingerprint(model), type(model).__name__, adapters.active(model), str(scoring_dtype(model))),
            *(plain[section] for section in ("model", "prompt", "generation", "engine", "evaluate", "objective")),
            *(plain["strategies"] if grown else {}, plain["train"]["num_threads"], run.stream.classes),
            run.identity if grown else without_strategies(run.identity),
            [[part if not isinstance(part, type) else part.__name__ for part in request.key] for request in requests],
        ]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]

    def _left(self, key: str) -> list[Reply] | None:
        """What another run has left; a damaged file is none."""
        if self.folder is None or not (path := self.folder / f"{key}.json").is_file():
            return None
        try:
            found = checkpoint.read_checked(path)
        except UserError:
            return None
        self.run.codec.truncated_ids |= set(found["truncated"])
        return [reply_of(row) for row in found["replies"]]

    def _leave(self, key: str, replies: Sequence[Reply]) -> None:
        """Leave what was said for the others."""
        run = self.run
        if self.folder is None or run.tasks_done or not run.writes:
            return
        left: dict[str, Any] = {
            "truncated": sorted(run.codec.truncated_ids),
            "replies": [astuple(reply) for reply in replies],
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write_checked(self.folder / f"{key}.json", left)
        except ValueError:  # a log-probability that is no number is nothing for JSON
            return


def reply_of(row: Sequence[Any]) -> Reply:
    """The reply that JSON has made lists of."""
    values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in row]
    return Reply(*values)
