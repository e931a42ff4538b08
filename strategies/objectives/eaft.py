"""Entropy-adaptive fine-tuning: a token counts as much as the model is undecided before it.

Diao et al. 2026, arXiv 2601.02151; code in LLaMA-Factory (`use_eaft_loss`). With H the entropy of the 20 most likely tokens,
their probabilities made to sum to 1, and sg[.] without a gradient,
    L = -1/N sum over N targets of sg[ (H / 3.0) ]^alpha log p.
A target that is unlikely where the model is certain, a "confident conflict", hardly counts. 3.0 is the code's; the largest
entropy of 20 tokens is ln 20 = 2.9957. axolotl's code does not divide, which is another learning rate at alpha = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.logits import by_rows, logprobs, negative_logp, target_logits
from cl_toolkit.objective import Objective
from cl_toolkit.ranges import at_least
from cl_toolkit.types import Outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Example

torch = LazyModule("torch")

SCALE = 3.0


def undecided(logits: Tensor, top_k: int) -> Tensor:
    """H / 3.0 at each of N places, (N,). logits (N, V); of fewer than `top_k` all count."""
    largest = logits.detach().topk(min(top_k, logits.shape[-1])).values.float()
    logp = torch.log_softmax(largest, -1)
    return -(logp.exp() * logp).sum(-1) / SCALE


def weighted(logits: Tensor, labels: Tensor, alpha: float, top_k: int) -> Tensor:
    """-sg[ (H / 3.0)^alpha ] log p of each target, (N,). logits (N, V), labels (N,)."""
    return -(undecided(logits, top_k) ** alpha) * logprobs(logits, labels)


class EAFT(Objective):
    """-log p of each answer token times the entropy before it, which passes no gradient, averaged over the answer tokens of the
    whole step. With alpha 0 it is `sft`. Rehearsed answers are weighted like new ones."""

    paper = "Diao et al. 2026, arXiv 2601.02151"
    inputs = ("conversations", "arrays", "image+text")
    gives = frozenset({"logits", "true_targets", "token_mean"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """alpha: power of the weight. top_k: tokens whose entropy it is."""

        alpha: Annotated[float, at_least(0)] = 1.0
        top_k: Annotated[int, at_least(2)] = 20

    def encode(self, model: nn.Module, task: TaskView, examples: Sequence[Example]) -> Batch:
        return task.codec.batch(examples)

    def forward(self, model: nn.Module, part: Batch) -> Outputs:
        count = max(part.total["tokens"], 1)
        if not self.config.alpha:
            total, found = negative_logp(model, part)
            return Outputs(loss=total / count, logits=found)
        logits = target_logits(model, part)
        per_token = partial(weighted, alpha=self.config.alpha, top_k=self.config.top_k)
        losses = by_rows(per_token, logits.shape[1], logits, part.asked.labels)
        return Outputs(loss=part.asked.total(losses) / count, logits=logits)
