"""Supervised fine-tuning: cross-entropy on the answer's tokens, or on the class of an array."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cl_toolkit.models.logits import negative_logp
from cl_toolkit.objective import Objective
from cl_toolkit.types import Outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Example


class SFT(Objective):
    """-log p(answer | prompt), averaged over the answer tokens of the whole step, the end mark included; or -log p(class | x),
    averaged over the step's arrays."""

    paper = "standard"
    is_baseline = True
    inputs = ("conversations", "arrays", "image+text")
    gives = frozenset({"logits", "true_targets", "token_mean"})

    def encode(self, model: nn.Module, task: TaskView, examples: Sequence[Example]) -> Batch:
        return task.codec.batch(examples)

    def forward(self, model: nn.Module, part: Batch) -> Outputs:
        total, logits = negative_logp(model, part)
        return Outputs(loss=total / max(part.total["tokens"], 1), logits=logits)
