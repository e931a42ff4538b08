"""Supervised fine-tuning: cross-entropy on the answer's tokens, or on the class of an array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cl_toolkit.engine.access import unwrapped
from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.logits import logprobs, negative_logp, target_logits
from cl_toolkit.objective import Objective
from cl_toolkit.types import Outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Example
else:
    torch = LazyModule("torch")


class SFT(Objective):
    """-log p(answer | prompt), averaged over the answer tokens of the whole step, the end mark included; or -log p(class | x),
    averaged over the step's rows."""

    paper = "standard"
    is_baseline = True
    inputs = ("conversations", "arrays", "image+text")
    gives = frozenset({"logits", "true_targets", "token_mean"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """among: which classes are compared, of a model that gives classes: all that it has | the row's own `choices`, those of
        its task, so that no other task's outputs are trained (the `labels trick` of Zeno et al. 2018, arXiv 1803.10123)."""

        among: Literal["all", "choices"] = "all"

    def equip(self, model: nn.Module, seed: int) -> nn.Module:
        if self.config.among == "choices" and not hasattr(model, "classes"):
            raise UserError("objective.among: choices: is for models that give classes; leave it out")
        return model

    def encode(self, model: nn.Module, task: TaskView, examples: Sequence[Example]) -> Batch:
        return task.codec.batch(examples)

    def forward(self, model: nn.Module, part: Batch) -> Outputs:
        if self.config.among == "all":
            total, logits = negative_logp(model, part)
        else:
            logits, asked = target_logits(model, part), part.asked
            total = -asked.total(logprobs(self.compared(model, part, logits), asked.labels))
        return Outputs(loss=total / max(part.total["tokens"], 1), logits=logits)

    def compared(self, model: nn.Module, part: Batch, logits: Tensor) -> Tensor:
        if self.config.among == "all":
            return logits
        own = comparable([part.examples[i] for i in part.asked.examples.tolist()], unwrapped(model).classes)
        return logits.masked_fill(~own.to(logits.device), -torch.inf)


def comparable(examples: Sequence[Example], classes: Sequence[str]) -> Tensor:
    """(B, V) bool: which classes are among the choices of each example; all of them where it has none."""
    rows = {e.choices: [e.choices is None or label in e.choices for label in classes] for e in examples}
    return torch.tensor([rows[e.choices] for e in examples], dtype=torch.bool).reshape(len(examples), len(classes))
