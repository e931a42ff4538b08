"""A-GEM: a step may not raise the loss on a memory of past tasks.

Chaudhry et al. 2019, arXiv 1812.00420. g is the gradient of the step, r that of a random batch of memory:
    g  if g.r >= 0,   else   g - (g.r / r.r) r.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from cl_toolkit.data.store import ExampleStore
from cl_toolkit.lazy import LazyModule
from cl_toolkit.ranges import at_least
from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.engine.session import Step
    from cl_toolkit.task_view import TaskView

torch = LazyModule("torch")


def projection(g_dot_r: float, r_dot_r: float) -> float:
    """The multiple of r to subtract from g; 0 where g does no harm, or where r is zero."""
    return g_dot_r / r_dot_r if g_dot_r < 0 and r_dot_r > 0 else 0.0


class AGEM(Strategy):
    """Project the step's gradient so that it does not oppose the memory's, before clipping. Costs one more forward and backward
    per step.

    g is the whole gradient of the step: that of the objective and of every other term. The memory batch is drawn uniformly
    from all stored examples of past tasks. A strategy that reads the gradient (`si`) has read it before this edit.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """memory_batch_size: examples per step on which r is computed; 0: off. buffer_size: stored examples in total;
        None: no limit. policy: which examples stay when the buffer is full."""

        memory_batch_size: Annotated[int, at_least(0)] = 32
        buffer_size: Annotated[int, at_least(0)] | None = None
        policy: Literal["reservoir", "ring", "quota"] = "quota"

    tags = Tags(
        paper="Chaudhry et al. 2019, arXiv 1812.00420",
        off={"memory_batch_size": 0},
        cost=Cost(forwards=1.0, backwards=1.0, copies=1.0),
        extra_memory="stored examples, one more gradient",
        needs_examples=True,
        edits_gradient=True,
    )
    kept = ("store",)

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.store = ExampleStore(self.config.buffer_size, self.config.policy)

    def cost(self, batch_size: int) -> Cost:
        share = self.config.memory_batch_size / batch_size
        return Cost(forwards=share, backwards=share, copies=float(share > 0))

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        self.task = task
        return model

    def before_step(self, model: nn.Module, step: Step) -> None:
        memory = [example for _, example in self.store.items]
        if not memory or not self.config.memory_batch_size:
            return
        order = torch.randperm(len(memory), generator=self.task.generator(self.name))
        chosen = [replace(memory[i], source="memory") for i in order[: self.config.memory_batch_size].tolist()]
        r = step.gradient_of(chosen)
        grads = step.grads
        g_dot_r = sum(torch.dot(grads[name].flatten(), value.flatten()) for name, value in r.items())
        r_dot_r = sum(torch.dot(value.flatten(), value.flatten()) for value in r.values())
        factor = projection(float(g_dot_r), float(r_dot_r))
        if factor:
            for name, value in r.items():
                grads[name] = grads[name] - factor * value

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if self.config.memory_batch_size and self.config.buffer_size != 0:
            self.store.add(task.index, task.examples, task.generator(self.name))
        return model
