"""The one pass that answers: everybody's requests together, each once, leaving no trace in the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cl_toolkit.engine.access import in_lockstep, in_one_piece
from cl_toolkit.engine.processes import Processes
from cl_toolkit.models.requests import Reply, Request

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.models.kind import Codec


class Answers:
    """Answers requests: those of one way (see `Request.way`) together, and what is asked twice is answered once. At most
    `batch_size` rows go through the model at a time. With several processes each answers every n-th of those in the order of
    their length, and all get every reply."""

    def __init__(self, codec: Codec, batch_size: int, processes: Processes | None = None):
        self.codec, self.batch_size, self.processes = codec, batch_size, processes or Processes()

    def __call__(self, model: nn.Module, requests: Sequence[Request]) -> list[Reply]:
        """The replies, in the order of the requests."""
        at: dict[tuple, int] = {}
        places = [at.setdefault(request.key, len(at)) for request in requests]
        asked = requests if len(at) == len(requests) else list(dict(zip(places, requests, strict=True)).values())
        with in_one_piece(model):
            found = self._answered(model, asked)
        return [found[place] for place in places]

    def _answered(self, model: nn.Module, asked: Sequence[Request]) -> dict[int, Reply]:
        """The replies by the places of the requests, on every process."""
        shared = self.processes.world > 1 and not in_lockstep(model)
        ways = [request.way for request in asked]
        found: dict[int, Reply] = {}
        for way in dict.fromkeys(ways):
            mine = [place for place, other in enumerate(ways) if other == way]
            if shared:
                mine = self._share(mine, asked)
            if mine:
                found.update(zip(mine, self.codec.reply(model, [asked[p] for p in mine], self.batch_size), strict=True))
        return dict(self.processes.gather(list(found.items()))) if shared else found

    def _share(self, places: Sequence[int], asked: Sequence[Request]) -> list[int]:
        """Those that this process answers: as many of every length as the others."""
        by_length = sorted(places, key=lambda place: self.codec.length(asked[place].example))
        return by_length[self.processes.rank :: self.processes.world]
