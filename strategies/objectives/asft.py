"""Anchored supervised fine-tuning: dynamic fine-tuning, held at the model that it began with.

Zhu et al. 2025, arXiv 2509.23753; code in LLaMA-Factory (`use_asft_loss`). With p the model's probability of the target
token, q what the model said before the task, and sg[.] without a gradient,
    L = 1/N sum over N targets of ( -sg[ p ] log p  +  alpha KL( q || p ) ),     the KL over the whole vocabulary.
Both sums are divided by the targets of the whole step; the code averages each micro-batch for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.logits import KL_TENSORS, by_rows, predicted, target_logits
from cl_toolkit.models.teacher import Teacher
from cl_toolkit.objective import Objective
from cl_toolkit.ranges import at_least
from cl_toolkit.strategy import Cost
from cl_toolkit.types import Outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Example

torch = LazyModule("torch")


def anchored(before: Tensor, logits: Tensor, labels: Tensor, weight: float) -> Tensor:
    """-sg[ p ] log p + alpha KL( q || p ) at each of N targets, (N,). before, logits (N, V), labels (N,)."""
    q, p = (torch.log_softmax(values.float(), -1) for values in (before, logits))
    own = p.gather(1, labels[:, None])[:, 0]
    kl = torch.nn.functional.kl_div(p, q, log_target=True, reduction="none").sum(-1)
    return -own.detach().exp() * own + weight * kl


class ASFT(Objective):
    """`dft` with a KL to the model at the start of the task, averaged over the answer tokens of the whole step.

    The paper trains one task, where the model at its start is the start model. In a stream the anchor moves on with each task,
    as `rft`'s reference does; `dft` with strategy `lwf: {teacher: start, temperature: 1, weight: 0.1}` keeps the first one.
    The anchor costs a forward without gradient: with a fresh adapter that is switched off, else by a copy of the trained
    weights that is swapped in.
    """

    paper = "Zhu et al. 2025, arXiv 2509.23753"
    inputs = ("conversations", "arrays", "image+text")
    gives = frozenset({"logits", "true_targets", "token_mean"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """weight: alpha; 0: no anchor is kept, and it is `dft`."""

        weight: Annotated[float, at_least(0)] = 0.1

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.anchor = Teacher()

    @property
    def extra_parameters(self) -> int:
        return self.anchor.parameters

    def cost(self) -> Cost:
        kept = float(self.config.weight > 0)
        return Cost(forwards=kept, copies=kept)

    def before_task(self, model: nn.Module, task: TaskView) -> TaskView:
        if self.config.weight:
            self.anchor.take(model)
        return task

    def encode(self, model: nn.Module, task: TaskView, examples: Sequence[Example]) -> Batch:
        return task.codec.batch(examples)

    def forward(self, model: nn.Module, part: Batch) -> Outputs:
        count = max(part.total["tokens"], 1)
        if not self.anchor:
            said = predicted(model, part)
            return Outputs(loss=-part.asked.total(said.logp.detach().exp() * said.logp) / count, logits=said.logits)
        with self.anchor(model):
            before = target_logits(model, part)
        logits = target_logits(model, part)
        per_token = partial(anchored, weight=self.config.weight)
        losses = by_rows(per_token, KL_TENSORS * logits.shape[1], before, logits, part.asked.labels)
        return Outputs(loss=part.asked.total(losses) / count, logits=logits)
