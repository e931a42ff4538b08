"""O-LoRA: each task learns in a low-rank subspace orthogonal to those of the tasks before.

Wang et al. 2023, arXiv 2310.14152; code cmnfriend/O-LoRA. Each task has an adapter (A_t, B_t) of its own; earlier ones are
frozen and stay active in the forward.
    L = L_new + lambda_1 sum over layers, i<t, j, k of |(A_i A_t^T)_jk|  +  lambda_2 sum over new weights w of ||w||_2
is what the code does. That the paper prints the squared entry could not be confirmed; it is an option.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.adapters import frozen_pairs, pair_names
from cl_toolkit.ranges import at_least
from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView

torch = LazyModule("torch")


def overlap(past: Tensor, new: Tensor, squared: bool = False) -> Tensor:
    """sum |(past new^T)_jk|, or of the squares. past (R, d_in), new (r, d_in): 0 for orthogonal rows."""
    products = past @ new.T
    return (products**2).sum() if squared else products.abs().sum()


class OLoRA(Strategy):
    """A penalty on the overlap of the new adapter's rows with those of all past adapters.

    At weight 0 it is sequential training with a stack of adapters, in which the frozen ones stay active; that is not
    sequential training with one adapter.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """weight: lambda_1. norm_weight: lambda_2. squared: the square of each entry instead of its absolute value."""

        weight: Annotated[float, at_least(0)] = 0.5
        norm_weight: Annotated[float, at_least(0)] = 0.0
        squared: bool = False

    tags = Tags(
        forks=True,
        paper="Wang et al. 2023, arXiv 2310.14152",
        off={"weight": 0.0, "norm_weight": 0.0},
        cost=Cost(copies_per_task=1.0),
        extra_memory="an adapter per past task",
        life_cycles=("stack",),
        of_adapter=frozenset({"pairs"}),
        owns=frozenset({"lora_A"}),
        exceptions={3: "a fresh A is random, so it overlaps with past ones from the first step on"},
    )

    @property
    def as_set(self) -> Tags:
        return replace(self.tags, forks=not self.config.norm_weight)  # a first adapter has a norm too

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        self.names = pair_names(model)  # layer -> names of A and B
        self.past = {
            layer: torch.cat([a.detach().clone() for a, _ in pairs])  # (R, d_in)
            for layer, pairs in frozen_pairs(model)
            if pairs and self.config.weight and layer in self.names
        }
        return model

    def penalty(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        terms = {}
        if self.past:
            overlaps = [
                overlap(past, weights[self.names[layer][0]], self.config.squared) for layer, past in self.past.items()
            ]
            terms[self.name] = self.config.weight * sum(overlaps)
        if self.config.norm_weight:
            norms = [weights[name].norm() for names in self.names.values() for name in names]
            terms[f"{self.name}_norm"] = self.config.norm_weight * sum(norms)
        return terms
