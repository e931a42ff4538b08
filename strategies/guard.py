"""Guard: after a task the anchors are checked on validation examples, and what harmed them too much is taken back.

Ours. The way back is the straight line of Wortsman et al. 2022 (WiSE-FT), arXiv 2109.01903: theta(a) = (1 - a) theta_before +
a theta_trained. With s_i(theta) the score of anchor i on its validation examples and theta_0 the start model, a task ends
with the largest a of 1, 1 - 1/n, ..., 1/n, 0  for which  s_i(theta_0) - s_i(theta(a)) <= margin  for every i.
Every one is tried from above, since the scores along the line need not be monotonic. a = 1 leaves the weights untouched, a = 0
takes the task back as a whole, without a look at the anchors: it is what the task before has left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from cl_toolkit.lazy import LazyModule
from cl_toolkit.ranges import at_least
from cl_toolkit.strategy import LIFE_CYCLES, Cost, Strategy, Tags

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView

torch = LazyModule("torch")

SLACK = 1e-9
"""What the difference of two scores is rounded by: one that falls by the margin has not fallen by more."""


class Guard(Strategy):
    """Keep a task only as far as the anchors (`stream.anchors`) lose no more than a margin against the start model.

    It uses the anchors' validation examples, which is a selection that other methods do not have: what an anchor scores on them
    afterwards is no measurement; the report's scores are those of its test examples. Of an adapter each matrix is mixed for
    itself. Strategies that look at the weights after a task see those that were trained.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """margin: how far an anchor's score may fall, in its own unit; null: off. steps: n, in how many steps the way back is
        tried; 1: all or nothing."""

        margin: Annotated[float, at_least(0)] | None = 0.02
        steps: Annotated[int, at_least(1)] = 10

    tags = Tags(
        paper="ours; the line of Wortsman et al. 2022, arXiv 2109.01903",
        off={"margin": None},
        cost=Cost(copies=1.0, looks=10),
        extra_memory="a copy of the trained weights",
        life_cycles=LIFE_CYCLES,
        owns=frozenset({"weights"}),
        validates=True,
        exceptions={1: "the first task too is taken back where it harms an anchor"},
    )
    kept = ("start",)

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.start: dict[str, float] = {}  # s_i(theta_0)
        self.share = 1.0  # a of the last task
        self.before: dict[str, Tensor] = {}  # theta_before, while a task is trained
        self.extra = 0

    @property
    def extra_parameters(self) -> int:
        return self.extra

    @property
    def as_set(self) -> Tags:
        return replace(self.tags, validates=self.config.margin is not None)

    def cost(self, batch_size: int) -> Cost:
        return Cost() if self.config.margin is None else replace(self.tags.cost, looks=self.config.steps)

    def told(self) -> dict[str, float]:
        """share: a, how much of the task was kept; 1: nothing was touched, 0: all was taken back."""
        return {} if self.config.margin is None else {"share": self.share}

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if self.config.margin is not None:
            self.start = self.start or task.validate(model)
            self.before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        return model

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if not self.before:  # switched off, or an anchor, which is never trained
            return model
        weights = {name: p for name, p in model.named_parameters() if name in self.before}
        trained = {name: p.detach().clone() for name, p in weights.items()}
        taken = self.config.steps
        while taken and self._harmed(task.validate(model)):
            taken -= 1
            for name, value in trained.items():
                weights[name].data.copy_(self._mixed(name, value, taken / self.config.steps))
        self.share = taken / self.config.steps
        self.extra = sum(value.numel() for value in self.before.values())
        self.before = {}
        return model

    def _harmed(self, now: Mapping[str, float]) -> bool:
        """Whether an anchor has lost more than it may."""
        kept = (before - now[name] <= self.config.margin + SLACK for name, before in self.start.items())
        return not all(kept)  # a score that is no number is no kept one

    def _mixed(self, name: str, trained: Tensor, share: float) -> Tensor:
        """theta(a), in fp32 and rounded once; at a = 0 it is theta_before, bit for bit."""
        before = self.before[name].to(trained.device)
        return torch.lerp(before.float(), trained.float(), share)
