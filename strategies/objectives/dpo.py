"""Direct preference optimisation: of two answers, make the chosen one likelier, against the model at the task's start.

Rafailov et al. 2023, arXiv 2305.18290:
    L = - mean over pairs of log sigmoid( beta [ log pi(y+|x) / pi_ref(y+|x) - log pi(y-|x) / pi_ref(y-|x) ] )
with log-probabilities summed over an answer's tokens; as in TRL without dropout. Tulu 3 (Lambert et al. 2024, arXiv 2411.15124)
takes their means: `length_normalized`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cl_toolkit.engine.access import eval_mode, unwrapped
from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.carried import carried, carry
from cl_toolkit.models.logits import Predicted, predicted
from cl_toolkit.models.teacher import Teacher
from cl_toolkit.objective import Objective
from cl_toolkit.ranges import above
from cl_toolkit.strategy import Cost
from cl_toolkit.types import WITHOUT_TARGET, Outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Example

torch = LazyModule("torch")


class DPO(Objective):
    """A pair's chosen answer against its rejected one, averaged over the pairs of the whole step.

    The chosen answer is the target, so that an example is rehearsed under other objectives and scored like any other; the
    rejected one stands in its `extra` (rows with `chosen` and `rejected`). Rehearsed examples need one too. The rejected
    answers ride in the batch, so that a pair is never parted, and cost a forward and a backward of their own.
    """

    paper = "Rafailov et al. 2023, arXiv 2305.18290"
    gives = frozenset({"logits"})
    needs = frozenset({"logits"})
    reads = frozenset({"rejected"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """beta: how much a change of the log-probabilities counts. length_normalized: means over an answer's tokens in place of
        sums."""

        beta: Annotated[float, above(0)] = 0.1
        length_normalized: bool = False

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.reference = Teacher()

    def cost(self) -> Cost:
        return Cost(forwards=3.0, backwards=1.0, copies=1.0)

    @property
    def extra_parameters(self) -> int:
        return self.reference.parameters

    def before_task(self, model: nn.Module, task: TaskView) -> TaskView:
        self.rejected(task.examples[:1])  # a task of other rows is refused before its first step
        self.reference.take(model)
        return task

    def encode(self, model: nn.Module, task: TaskView, examples: Sequence[Example]) -> Batch:
        batch = task.codec.batch(examples)
        others = task.codec.answers(examples, self.rejected(examples))
        carry(batch, "rejected", task.codec.batch(examples, others))
        return batch

    def forward(self, model: nn.Module, part: Batch) -> Outputs:
        other = carried(part, "rejected")
        with self.reference(model):
            before = [self.summed(p, predicted(model, p, logits=False)) for p in (part, other)]
        with eval_mode(unwrapped(model)):
            said, unsaid = predicted(model, part), predicted(model, other, logits=False)
        ratios = [self.summed(p, now) - ref for p, now, ref in zip((part, other), (said, unsaid), before, strict=True)]
        losses = -torch.nn.functional.logsigmoid(self.config.beta * (ratios[0] - ratios[1]))
        learned = torch.tensor([e.source not in WITHOUT_TARGET for e in part.examples], device=losses.device)
        return Outputs(loss=losses.where(learned, 0).sum() / max(part.total["sequences"], 1), logits=said.logits)

    def summed(self, part: Batch, said: Predicted) -> Tensor:
        """log p of each example's answer, (E,), or its mean over the answer's tokens."""
        owners, size = part.asked.examples, len(part.examples)
        found = said.logp.new_zeros(size).index_add(0, owners, said.logp)
        return found / torch.bincount(owners, minlength=size) if self.config.length_normalized else found

    def rejected(self, examples: Sequence[Example]) -> list[str]:
        """The rejected answers. Raises UserError for an example without one."""
        for example in examples:
            if "rejected" not in example.extra:
                raise UserError(
                    f"objective {self.name}: {example.id}: has no rejected answer; it learns from rows with chosen and "
                    "rejected, and rehearsed ones need both too"
                )
        return [example.extra["rejected"] for example in examples]
