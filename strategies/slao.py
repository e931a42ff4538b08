"""SLAO: one adapter for all tasks, trained from the last task's, and merged into those before by a weight that falls with time.

Qiao & Mahdavi 2025, arXiv 2512.23017, as two re-implementations have it, since no code of the authors was found. With
(A_i, B_i) as task i = 1, 2, ... has trained them, A (r, d_in) and B (d_out, r), the training of task i begins with
    A = Q^T,  Q R = A_{i-1}^T with a positive diagonal of R;   B = B_{i-1},
and when it is over the model has
    A_merged = A_i,   B_merged <- B_merged + (B_i - B_merged) / sqrt(i).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cl_toolkit.engine.access import beside
from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.adapters import pairs
from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView

torch = LazyModule("torch")


def orthonormal(a: Tensor) -> Tensor:
    """Orthonormal rows that span what the rows of a (r, d_in) do, each on the side of its own: r <= d_in."""
    q, r = torch.linalg.qr(a.T.float())
    return (q * torch.where(r.diagonal() < 0, -1.0, 1.0)).T


class SLAO(Strategy):
    """Train one adapter on, from orthonormal rows of A, and merge each task's B into those before.

    Between tasks the merged B is the model; the next task is trained from the last one's own B, which is kept. Weights that are
    trained beside the pairs go on as they are.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """orthogonal: whether a task begins with A's rows made orthonormal. merge: whether B is merged."""

        orthogonal: bool = True
        merge: bool = True

    tags = Tags(
        forks=True,
        paper="Qiao & Mahdavi 2025, arXiv 2512.23017",
        off={"orthogonal": False, "merge": False},
        cost=Cost(copies=0.5),
        extra_memory="a copy of each B",
        life_cycles=("continue",),
        of_adapter=frozenset({"pairs"}),
        owns=frozenset({"weights", "lora_A"}),
    )
    kept = ("tasks", "other")

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.tasks = 0  # learned so far
        self.other: dict[str, Tensor] = {}  # layer -> between tasks the B that was trained; within one the merged B

    @property
    def extra_parameters(self) -> int:
        return sum(b.numel() for b in self.other.values())

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        self.other = beside(model, self.other)
        for layer, a, b, _ in pairs(model):
            if self.config.orthogonal and a.shape[0] > a.shape[1]:  # said in the first task, not after it was learned
                wanted = f"expected a rank of at most {a.shape[1]}, the inputs of {layer}; got {a.shape[0]}"
                raise UserError(f"strategies.{self.name}.orthogonal: {wanted}")
            if self.config.orthogonal and self.tasks:
                a.data.copy_(orthonormal(a.detach()))
            if layer in self.other:
                self.other[layer], trained = b.detach().clone(), self.other[layer]
                b.data.copy_(trained)
        return model

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        found = list(pairs(model))
        self.tasks += bool(found)  # none on an anchor, which is never trained
        if self.config.merge:
            for layer, _, b, _ in found:
                trained = b.detach().clone()
                b.data.lerp_(self.other.get(layer, trained).to(b.device), 1 - self.tasks**-0.5)
                self.other[layer] = trained
        return model
