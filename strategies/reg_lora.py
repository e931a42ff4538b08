"""RegLoRA: the largest elements of past weight updates are protected from further change.

Chen et al. 2025 (SEFE), arXiv 2505.02486; code jinpeng0528/SEFE. The update of a linear layer is B A. After task t, per
matrix, the positions of the `share` largest |B A| join the protected ones P. While a later task is trained,
    L = L_new + lambda * mean over the matrices of  mean_{(i,j) in P} | (B A)_ij |,
where B and A are the new task's. The adapter is merged after each task and a fresh one begins at B = 0. The scale alpha/r
is applied neither here nor when positions are chosen, as in the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cl_toolkit.engine.access import beside
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.adapters import pair_names, pairs
from cl_toolkit.ranges import SHARE, at_least
from cl_toolkit.strategy import Strategy, Tags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView

torch = LazyModule("torch")


def largest(update: Tensor, share: float) -> Tensor:
    """Flat positions (int32) of the floor(share * size) largest |update|; ties go to the first."""
    k = int(share * update.numel() + 1e-9)  # 0.29 * 100 is 28.999... in floating point
    order = torch.sort(update.flatten().abs(), descending=True, stable=True).indices
    return order[:k].to(torch.int32)


def protected_mean(b: Tensor, a: Tensor, positions: Tensor) -> Tensor:
    """mean |(B A)_p| over flat positions p; the whole product is computed, which is cheaper than gathering rows. `gather`,
    since the gradient of an index is sorted first, which on a GPU takes longer than all the rest."""
    return (b @ a).flatten().gather(0, positions.long()).abs().mean()


class RegLoRA(Strategy):
    """An L1 penalty on the new update at positions that mattered to past updates.

    By default positions are a set: the union over tasks. `duplicates` keeps the authors' list, in which a position that
    mattered to several tasks counts several times. The default weight fits the mean of means in a model of 7 B
    parameters; a small one may need another.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """weight: lambda. share: of each matrix's elements protected per task, in [0, 1]. duplicates: a list of positions
        instead of a set."""

        weight: Annotated[float, at_least(0)] = 2500.0
        share: Annotated[float, SHARE] = 0.02
        duplicates: bool = False

    tags = Tags(
        forks=True,
        paper="Chen et al. 2025 (SEFE), arXiv 2505.02486",
        off={"weight": 0.0},
        extra_memory="4 bytes per protected position",
        life_cycles=("merge",),
        of_adapter=frozenset({"pairs"}),
        owns=frozenset({"lora_A"}),
    )
    kept = ("positions",)

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.positions: dict[str, Tensor] = {}  # layer -> flat positions (int32), by names that survive merging

    @property
    def extra_parameters(self) -> int:
        return sum(positions.numel() for positions in self.positions.values())

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        self.names = pair_names(model)  # layer -> names of A and B
        self.positions = beside(model, self.positions)
        return model

    def penalty(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        means = [
            protected_mean(weights[b], weights[a], self.positions[layer])
            for layer, (a, b) in self.names.items()
            if layer in self.positions
        ]
        return {self.name: self.config.weight * sum(means) / len(self.names)} if means else {}

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if not self.config.weight:
            return model
        for layer, a, b, _ in pairs(model):
            found = largest(b.detach() @ a.detach(), self.config.share)
            known = self.positions.get(layer, found[:0]).to(found.device)
            both = torch.cat([known, found])
            if both.numel():  # the mean over no positions would not be a number
                self.positions[layer] = both if self.config.duplicates else torch.unique(both)
        return model
