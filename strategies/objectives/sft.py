"""Supervised fine-tuning: cross-entropy on the answer's tokens, or on the class of an array."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cl_toolkit.lazy import LazyModule
from cl_toolkit.objective import Objective
from cl_toolkit.types import IGNORE, Outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Example

torch = LazyModule("torch")


class SFT(Objective):
    """-log p(answer | prompt), averaged over the answer tokens of the whole step, the end mark included; or -log p(class | x),
    averaged over the step's arrays."""

    paper = "standard"
    is_baseline = True
    inputs = ("conversations", "arrays")
    gives = frozenset({"logits", "true_targets"})

    def encode(self, model: nn.Module, task: TaskView, examples: Sequence[Example]) -> Batch:
        return task.codec.batch(examples)

    def forward(self, model: nn.Module, part: Batch) -> Outputs:
        logits = model(**part.inputs).logits  # (B, T, V) or (B, V)
        found, labels = (
            (logits[:, :-1].flatten(0, 1), part.labels[:, 1:].flatten()) if logits.dim() == 3 else (logits, part.labels)
        )
        total = torch.nn.functional.cross_entropy(found.float(), labels, ignore_index=IGNORE, reduction="sum")
        return Outputs(loss=total / max(part.total["tokens"], 1), logits=logits)
