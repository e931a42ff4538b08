"""Prototype-sample relation distillation: keep how the prototypes of past classes relate to new samples.

Asadi et al. 2023 (PRD), arXiv 2303.14771; code naderAsadi/Probing-Continual-Learning. With the encoder and the prototypes as
they were before the task marked by ', and s_ic = h_i . p_c / |p_c|:
    L = L_new + alpha * sum over past tasks k of  mean_i KL( softmax_c(s'_i / kappa) || softmax_c(s_i / kappa) ),   c in k,
as the code computes it. A third party reads the paper's text as a softmax over the samples of the batch for each past
prototype, with both sides scaled to length 1: `relation_axis: samples`. Which one the paper prints could not be confirmed. The
gradient reaches the encoder and the past prototypes; that is how these go on moving without past data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cl_toolkit.engine.access import unwrapped
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.teacher import Teacher
from cl_toolkit.ranges import above, at_least
from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Outputs

torch = LazyModule("torch")


def relation(before: Tensor, now: Tensor, axis: str, kappa: float = 1.0) -> Tensor:
    """Mean KL of the softmax of scores (N, C), along the classes of each sample or the samples of each class."""
    dim = 1 if axis == "classes" else 0
    kl = torch.nn.functional.kl_div(
        torch.log_softmax(now / kappa, dim), torch.log_softmax(before / kappa, dim), log_target=True, reduction="sum"
    )
    return kl / before.shape[1 - dim]


class PrototypeDistill(Strategy):
    """Relation distillation for objective `supcon`, which has the encoder, its contrastive loss and the prototypes.

    No past data is stored. The teacher is the model before the task: a copy of the trained weights that is swapped in
    for a forward without gradient, in eval mode (the authors' code leaves it in train mode).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """weight: alpha. kappa: temperature of both sides. relation_axis: see the module."""

        weight: Annotated[float, at_least(0)] = 4.0
        kappa: Annotated[float, above(0)] = 1.0
        relation_axis: Literal["classes", "samples"] = "classes"

    tags = Tags(
        paper="Asadi et al. 2023 (PRD), arXiv 2303.14771",
        off={"weight": 0.0},
        cost=Cost(forwards=1.0, copies=1.0),
        extra_memory="a copy of the trained weights",
        needs=frozenset({"features", "prototypes"}),
    )
    kept = ("past",)

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.past: list[list[str]] = []  # labels of each past set of classes
        self.teacher = Teacher()

    @property
    def extra_parameters(self) -> int:
        return self.teacher.parameters

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if self.past and self.config.weight:
            self.teacher.take(model)
        return model

    def loss(self, model: nn.Module, part: Batch, out: Outputs) -> dict[str, Tensor]:
        if not self.teacher:
            return {}
        with self.teacher(model):
            teacher = model(**part.inputs)
        before, now = teacher.logits, out.logits
        if self.config.relation_axis == "samples":
            pairs = (before, teacher.features), (now, out.features)
            before, now = (s / h.norm(dim=1, keepdim=True).clamp(min=1e-12) for s, h in pairs)
        rows, place = part.source("task"), {label: i for i, label in enumerate(unwrapped(model).classes)}
        terms = []
        for labels in self.past:
            columns = [place[label] for label in labels]
            scores = before[rows][:, columns], now[rows][:, columns]
            terms.append(relation(*scores, self.config.relation_axis, self.config.kappa))
        return {self.name: self.config.weight * torch.stack(terms).sum()}

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        # an anchor's classes may never have been learned: they have no prototypes
        known = sorted({e.target for e in task.examples} & set(unwrapped(model).classes))
        if known and known not in self.past:  # tasks with the same classes have one relation
            self.past.append(known)
        return model
