"""Dynamic fine-tuning: each target token's loss is weighted by its own probability.

Wu et al. 2025, arXiv 2508.05629. With p the model's probability of the target token and sg[.] without a gradient,
    L = -1/N sum over N targets of sg[ p ] log p,
so that a token's gradient is that of -p: bounded, where that of -log p grows as 1/p.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cl_toolkit.models.logits import predicted
from cl_toolkit.objective import Objective
from cl_toolkit.types import Outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Example


def weighted(logp: Tensor) -> Tensor:
    """-sg[ p ] log p of each target. logp (N,)."""
    return -logp.detach().exp() * logp


class DFT(Objective):
    """-log p of each answer token times its probability, which passes no gradient, averaged over the answer tokens of the
    whole step: what the model finds unlikely pulls less. Rehearsed answers are weighted like new ones."""

    paper = "Wu et al. 2025, arXiv 2508.05629"
    inputs = ("conversations", "arrays", "image+text")
    gives = frozenset({"logits", "true_targets", "token_mean"})

    def encode(self, model: nn.Module, task: TaskView, examples: Sequence[Example]) -> Batch:
        return task.codec.batch(examples)

    def forward(self, model: nn.Module, part: Batch) -> Outputs:
        said = predicted(model, part)
        return Outputs(loss=part.asked.total(weighted(said.logp)) / max(part.total["tokens"], 1), logits=said.logits)
