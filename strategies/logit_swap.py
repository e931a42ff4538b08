"""Logit-swap self-distillation: learn the right token, and leave the rest of the distribution as the start model had it.

Jiang et al. 2024 (Mix-CPT), arXiv 2407.10804. At a position with true next token y, z the logits of the original model and
m = argmax z: exchange entries m and y of z to get z' (nothing to exchange where m = y or the two are equal), and
    L = L_new + alpha * KL( softmax(z') || softmax(student) ).
No official code was found. The swap is confirmed; the direction of the KL, alpha, and that the plain loss is kept beside it
could not be: the choices here are an open re-implementation's (alpha = 0.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.logits import KL_TENSORS, by_rows, target_logits
from cl_toolkit.models.teacher import Teacher
from cl_toolkit.ranges import above, at_least
from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Outputs

torch = LazyModule("torch")


def swap(logits: Tensor, labels: Tensor) -> Tensor:
    """z': logits (N, V) with the entries of the largest and of the label (N,) exchanged. The largest afterwards is the
    label; the multiset of entries, and so the entropy, stays. A tie with the label counts as the label."""
    best, top = logits.max(-1, keepdim=True)
    label = labels[:, None]
    own = logits.gather(1, label)
    tie = own == best
    top = torch.where(tie, label, top)
    return logits.scatter(1, top, own).scatter(1, label, best)


class LogitSwap(Strategy):
    """Distillation from the original model with the right answer put on top, averaged over the step's target tokens.

    The original model is the one before the first task: with an adapter that is never merged, the model without it; else a
    copy of the trained weights (`extra_parameters`) that is swapped in for a forward without gradient. Nothing the
    size of the vocabulary is stored.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """weight: alpha. temperature: divides the logits of both."""

        weight: Annotated[float, at_least(0)] = 0.3
        temperature: Annotated[float, above(0)] = 1.0

    tags = Tags(
        paper="Jiang et al. 2024 (Mix-CPT), arXiv 2407.10804",
        off={"weight": 0.0},
        cost=Cost(forwards=1.0, copies=1.0),
        extra_memory="a copy of the trained weights; with an adapter none",
        life_cycles=(None, "continue", "stack"),
        needs=frozenset({"logits", "true_targets"}),  # the swap puts the true token on top
        exceptions={1: "the start model teaches from the first task on"},
    )
    kept = ("teacher",)

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.teacher = Teacher()

    @property
    def extra_parameters(self) -> int:
        return self.teacher.parameters

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if not self.teacher and self.config.weight:
            self.teacher.take(model)
        return model

    def loss(self, model: nn.Module, part: Batch, out: Outputs) -> dict[str, Tensor]:
        if not self.teacher:
            return {}
        with self.teacher(model):
            teacher = target_logits(model, part)
        kl = by_rows(self.divergence, KL_TENSORS * teacher.shape[1], teacher, out.logits, part.asked.labels)
        return {self.name: self.config.weight * part.asked.total(kl) / max(part.total["tokens"], 1)}

    def divergence(self, teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:
        """KL of the swapped teacher and the student, (N,). teacher, student (N, V), labels (N,)."""
        swapped = torch.log_softmax(swap(teacher.float(), labels) / self.config.temperature, -1)
        own = torch.log_softmax(student.float() / self.config.temperature, -1)
        return torch.nn.functional.kl_div(own, swapped, log_target=True, reduction="none").sum(-1)
