"""The one pass that answers: everybody's requests together, each once, leaving no trace in the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cl_toolkit.engine.access import in_lockstep
from cl_toolkit.engine.processes import Processes
from cl_toolkit.models.requests import Reply, Request

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.models.kind import Codec


class Answers:
    """Answers requests: those of one way (see `Request.way`) are sorted by length and batched, and what is asked twice is
    answered once. With several processes each takes every n-th batch, and all get every reply."""

    def __init__(self, codec: Codec, batch_size: int, processes: Processes | None = None):
        self.codec, self.batch_size, self.processes = codec, batch_size, processes or Processes()

    def __call__(self, model: nn.Module, requests: Sequence[Request]) -> list[Reply]:
        """The replies, in the order of the requests."""
        asked = {request.key: request for request in requests}
        found: list[tuple[tuple, Reply]] = []
        for batch in self._shared(model, list(self._batches(list(asked.values())))):
            given = self.codec.reply(model, batch, self.batch_size)
            found += [(request.key, reply) for request, reply in zip(batch, given, strict=True)]
        if not in_lockstep(model):
            found = self.processes.gather(found)
        replies = dict(found)
        return [replies[request.key] for request in requests]

    def _batches(self, requests: list[Request]) -> Iterator[list[Request]]:
        requests.sort(key=lambda request: self.codec.length(request.example))
        for way in dict.fromkeys(request.way for request in requests):
            of_way = [request for request in requests if request.way == way]
            for start in range(0, len(of_way), self.batch_size):
                yield of_way[start : start + self.batch_size]

    def _shared(self, model: nn.Module, batches: list[list[Request]]) -> list[list[Request]]:
        return batches if in_lockstep(model) else batches[self.processes.rank :: self.processes.world]
