"""Learning without forgetting: on the new task's data, keep answering as the model did before the task, or at the start.

Li & Hoiem 2016, arXiv 1606.09282:
    L = L_new + alpha * KL( softmax(z_before / T) || softmax(z / T) ),   T = 2,
as a KL (0 right at the start of a task) without a factor T^2, as in Avalanche; alpha = 1 there. With z_start, what the model
before the first task says, in the place of z_before and T = 1 it is fine-tuning with a KL to the start model ("SFT-KL").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.logits import KL_TENSORS, by_rows, target_logits
from cl_toolkit.models.teacher import Teacher
from cl_toolkit.ranges import above, at_least
from cl_toolkit.strategy import LIFE_CYCLES, Cost, Strategy, Tags

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch, Outputs

torch = LazyModule("torch")


def distillation(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """KL( softmax(teacher / T) || softmax(student / T) ) at each of N positions, (N,). teacher, student (N, V)."""
    return torch.nn.functional.kl_div(
        torch.log_softmax(student.float() / temperature, -1),
        torch.log_softmax(teacher.float() / temperature, -1),
        log_target=True,
        reduction="none",
    ).sum(-1)


class LwF(Strategy):
    """Distillation from the model before the task, averaged over the target tokens of the step's new examples.

    A language model's classes are its vocabulary, the same in every task, so all outputs count. For a classifier only those of
    past classes do. Examples rehearsed by other strategies do not count. The teacher costs a forward without
    gradient, but no second model: a fresh adapter is switched off; otherwise a copy of the trained weights is swapped in.
    Under `rft` the tokens are those of the rollouts. The start model teaches from the first task on, which is no sequential
    training then, with all its outputs; an adapter that is merged takes it away.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """weight: alpha. temperature: T. teacher: the model before the task, or before the first one."""

        weight: Annotated[float, at_least(0)] = 1.0
        temperature: Annotated[float, above(0)] = 2.0
        teacher: Literal["previous", "start"] = "previous"

    tags = Tags(
        forks=True,
        paper="Li & Hoiem 2016, arXiv 1606.09282",
        off={"weight": 0.0},
        cost=Cost(forwards=1.0, copies=1.0),
        extra_memory="a copy of the trained weights; with a fresh adapter none",
        needs=frozenset({"logits"}),
    )
    kept = ("past", "classes")

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.past = 0  # tasks learned so far: there is nothing to keep before the first
        self.classes: list[int] = []  # of a classifier: those of past tasks
        self.teacher = Teacher()

    @property
    def as_set(self) -> Tags:
        if self.config.teacher == "previous" or not self.config.weight:
            return self.tags
        # an adapter that is merged takes the start model away, which teaches in the first task too
        return replace(self.tags, life_cycles=tuple(life for life in LIFE_CYCLES if life != "merge"), forks=False)

    @property
    def extra_parameters(self) -> int:
        return self.teacher.parameters

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if not self.config.weight:
            return model
        if self.config.teacher == "previous":
            if self.past:
                self.teacher.take(model)
        elif not self.teacher:
            self.teacher.take(model)
        return model

    def loss(self, model: nn.Module, part: Batch, out: Outputs) -> dict[str, Tensor]:
        if not self.teacher:
            return {}
        with self.teacher(model):
            teacher, student = target_logits(model, part), out.logits
        if self.classes:
            teacher, student = teacher[:, self.classes], student[:, self.classes]
        width, kl_of = KL_TENSORS * student.shape[1], partial(distillation, temperature=self.config.temperature)
        kl = by_rows(kl_of, width, teacher, student)
        new = part.source("task")[part.asked.examples]
        count = max(part.total["tokens"] - part.total["memory_tokens"], 1)
        return {self.name: self.config.weight * kl.where(new, 0).sum() / count}

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        self.past += 1
        if self.config.teacher == "previous":
            self.classes = sorted({*self.classes, *map(task.codec.class_of, task.examples)} - {None})
        return model

    def state(self) -> dict[str, Any]:
        """With the start model as teacher, which is not there to be taken again."""
        return super().state() | ({"teacher": self.teacher.state()} if self.config.teacher == "start" else {})

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        if "teacher" in state:
            self.teacher.load_state(state["teacher"])
