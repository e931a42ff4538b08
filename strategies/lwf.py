"""Learning without forgetting: on the new task's data, keep answering as the model did before the task.

Li & Hoiem 2016, arXiv 1606.09282:
    L = L_new + alpha * KL( softmax(z_before / T) || softmax(z / T) ),   T = 2,
as a KL (0 right at the start of a task) without a factor T^2, as in Avalanche; alpha = 1 there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.logits import target_logits
from cl_toolkit.ranges import above, at_least
from cl_toolkit.strategy import Strategy, Tags

torch = LazyModule("torch")


def distillation(teacher, student, temperature: float):
    """sum over N positions of KL( softmax(teacher / T) || softmax(student / T) ). teacher, student (N, V)."""
    return torch.nn.functional.kl_div(
        torch.log_softmax(student / temperature, -1),
        torch.log_softmax(teacher / temperature, -1),
        log_target=True,
        reduction="sum",
    )


class LwF(Strategy):
    """Distillation from the model before the task, averaged over the target tokens of the step's new examples.

    A language model's classes are its vocabulary, the same in every task, so all outputs count. For a classifier only those of
    past classes do. Examples rehearsed by other strategies do not count. The teacher costs a forward without
    gradient, but no second model: a fresh adapter is switched off; otherwise a copy of the trained weights is swapped in.
    Under `rft` the tokens are those of the rollouts.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """weight: alpha. temperature: T."""

        weight: Annotated[float, at_least(0)] = 1.0
        temperature: Annotated[float, above(0)] = 2.0

    tags = Tags(
        paper="Li & Hoiem 2016, arXiv 1606.09282",
        off={"weight": 0.0},
        extra_passes="a forward without gradient per step",
        extra_memory="a copy of the trained weights; with a fresh adapter none",
        objectives=("sft", "lm", "rft"),  # supcon's logits are no classifier's; prototype_distill keeps those
    )

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.past = 0  # tasks learned so far: there is nothing to keep before the first
        self.classes: list[int] = []  # of a classifier: those of past tasks
        self._teacher = None

    @property
    def extra_parameters(self) -> int:
        return self._teacher.parameters if self._teacher else 0

    def before_task(self, model, task):
        from cl_toolkit.models.teacher import Reference

        self._teacher = Reference(model) if self.past and self.config.weight else None
        return model

    def loss(self, model, part, out):
        if self._teacher is None:
            return {}
        new = part.source("task")
        with self._teacher.restored(model):  # only its logits at targets are kept
            teacher, _ = target_logits(model(**part.inputs).logits, part.labels, new)
        student, _ = target_logits(out.logits, part.labels, new)
        if self.classes:
            teacher, student = teacher[:, self.classes], student[:, self.classes]
        count = max(part.total["tokens"] - part.total["memory_tokens"], 1)
        return {self.name: self.config.weight * distillation(teacher, student, self.config.temperature) / count}

    def after_task(self, model, task):
        self.past += 1
        self.classes = sorted({*self.classes, *map(task.codec.class_of, task.examples)} - {None})
        return model

    def state(self):
        return {"past": self.past, "classes": self.classes}

    def load_state(self, state):
        self.past, self.classes = state["past"], state["classes"]
