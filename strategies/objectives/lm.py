"""Language modelling: the next token at every place of a text.

    L = -1/N sum over N targets of log p(token | the tokens before it in its document)

Documents are packed into rows of `block_size` tokens, their neighbours unseen (`models/documents.py`). Continued pre-training,
as in Gururangan et al. 2020, arXiv 2004.10964, is this on a stream of domains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cl_toolkit.models.documents import check_apart, packed
from cl_toolkit.models.logits import negative_logp
from cl_toolkit.objective import Objective
from cl_toolkit.ranges import at_least
from cl_toolkit.types import Outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Example


class LM(Objective):
    """-log p of each token given those before it in its document, averaged over all tokens of the step, end marks included and
    each document's first token not. An example is a row of `block_size` tokens: batch sizes, epochs and what is rehearsed
    count rows."""

    paper = "standard"
    inputs = ("documents",)
    needs = frozenset({"logits"})
    gives = frozenset({"logits", "true_targets", "token_mean"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """block_size: tokens of a row."""

        block_size: Annotated[int, at_least(2)] = 512

    @property
    def answer_limit(self) -> tuple[str, int]:
        return "block_size", self.config.block_size

    def units(self, codec: Any, examples: Sequence[Example]) -> Sequence[Example]:
        return packed(examples, codec.document, self.config.block_size)

    def before_task(self, model: nn.Module, task: TaskView) -> TaskView:
        check_apart(model, "objective.name: lm")
        return task

    def encode(self, model: nn.Module, task: TaskView, examples: Sequence[Example]) -> Batch:
        return task.codec.batch(examples)

    def forward(self, model: nn.Module, part: Batch) -> Outputs:
        total, logits = negative_logp(model, part)
        return Outputs(loss=total / max(part.total["tokens"], 1), logits=logits)
