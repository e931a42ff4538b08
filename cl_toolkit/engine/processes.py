"""The processes of a job: who has which share, and sums over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from cl_toolkit.types import Example


class Processes:
    """One process. `DistributedProcesses` is the same with several."""

    rank: int = 0
    world: int = 1

    def own(self, items: Sequence[Any]) -> list[Any]:
        """This process's items: neighbours, sizes that differ by one at most, none where there are too few."""
        n = len(items)
        return list(items[n * self.rank // self.world : n * (self.rank + 1) // self.world])

    def share(self, examples: Sequence[Example]) -> list[Example]:
        """This process's examples of a batch. A process without any gets one filler, which has no target."""
        return self.own(examples) or [replace(examples[0], source="filler")]

    def sum(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Numbers added over all processes."""
        return dict(counts)

    def max(self, value: int) -> int:
        """The largest of a number over all processes."""
        return value

    def sum_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Add tensors over all processes, in place."""

    def mean_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Average tensors over all processes, in place."""

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """Lists of all processes, one after the other, on every process."""
        return list(items)

    def barrier(self) -> None:
        """Wait for all processes."""


class DistributedProcesses(Processes):
    """Several processes, over torch.distributed. The process group must exist."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._dist = dist
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"

    def sum(self, counts):
        packed = torch.tensor(list(counts.values()), dtype=torch.float64, device=self._device)
        self._dist.all_reduce(packed)
        return dict(zip(counts, packed.tolist(), strict=True))

    def max(self, value):
        packed = torch.tensor([value], device=self._device)
        self._dist.all_reduce(packed, op=self._dist.ReduceOp.MAX)
        return int(packed)

    def sum_(self, tensors):
        for tensor in tensors:
            self._dist.all_reduce(tensor)

    def mean_(self, tensors):
        self.sum_(tensors)
        for tensor in tensors:
            tensor /= self.world

    def gather(self, items):
        parts: list[Any] = [None] * self.world
        self._dist.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]

    def barrier(self):
        self._dist.barrier()
