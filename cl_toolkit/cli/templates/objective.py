"""One line: how a task is learned. Paper and equation, or "ours"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from torch.nn.functional import cross_entropy

from cl_toolkit import at_least
from cl_toolkit.models.logits import target_logits
from cl_toolkit.objective import Objective
from cl_toolkit.types import Outputs

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Example


class MyIdea(Objective):
    """-log p of the answer's tokens (of an array: its class), with a share of each target spread over all outputs. Replace this
    rule by yours."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """smoothing: the share that is spread."""

        smoothing: Annotated[float, at_least(0).below(1)] = 0.1

    inputs = ("conversations", "arrays")
    gives = frozenset({"logits", "true_targets"})  # what strategies may rely on

    def encode(self, model: nn.Module, task: TaskView, examples: Sequence[Example]) -> Batch:
        return task.codec.batch(examples)

    def forward(self, model: nn.Module, part: Batch) -> Outputs:
        logits = target_logits(model, part)  # (N, V): at each target of the part, over tokens or classes
        smoothing = self.config.smoothing
        losses = cross_entropy(logits.float(), part.asked.labels, label_smoothing=smoothing, reduction="none")
        # a sum over the part divided by a count of the whole step: it does not matter how a batch is cut
        return Outputs(loss=part.asked.total(losses) / max(part.total["tokens"], 1), logits=logits)
