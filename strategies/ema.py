"""Slow weights: beside the weights that are trained stands their moving average, and that is the model between tasks.

Hazard et al. 2025 (SuRe), arXiv 2511.22367, the dual learner without its choice of what to rehearse. After each update
    theta_slow <- beta theta_slow + (1 - beta) theta_fast.
As read of summaries of the paper: that its fast weights go on from task to task, which is the default here, and its beta of
0.995 could not be confirmed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cl_toolkit.engine.access import beside
from cl_toolkit.lazy import LazyModule
from cl_toolkit.ranges import at_least
from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from cl_toolkit.engine.session import Step
    from cl_toolkit.task_view import TaskView

torch = LazyModule("torch")


class EMA(Strategy):
    """Train fast weights, and after the task go on with their moving average: the slow ones are scored, kept and exported.

    Within a task forgetting curves and probes look at the fast weights, rows of the matrix at the slow ones. The average begins
    at the start model. With `begin: fast` the trajectory is that of sequential training, of which only what is scored
    differs. Of an adapter each matrix is averaged for itself. Strategies that look at the weights after a task see the fast
    ones. The average is kept in fp32.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """decay: beta. begin: whether the next task's training begins at the fast weights, as the last one has left them, or
        at the slow ones."""

        decay: Annotated[float, at_least(0).below(1)] = 0.995
        begin: Literal["fast", "slow"] = "fast"

    tags = Tags(
        paper="Hazard et al. 2025 (SuRe), arXiv 2511.22367",
        off={"decay": 0.0},
        cost=Cost(copies=2.0),
        extra_memory="two copies of the trained weights; one where training goes on from the slow ones",
        life_cycles=(None, "continue"),
        owns=frozenset({"weights"}),
        exceptions={1: "after the first task too the slow weights are the model"},
    )
    kept = ("fast",)

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.fast: dict[str, Tensor] = {}  # the last task's trained weights
        self.slow: dict[str, Tensor] = {}  # those of the task that is trained; between tasks they are the model

    @property
    def extra_parameters(self) -> int:
        return sum(value.numel() for kept in (self.fast, self.slow) for value in kept.values())

    def cost(self, batch_size: int) -> Cost:
        return Cost(copies=1.0 + (self.config.begin == "fast")) if self.config.decay else Cost()

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if not self.config.decay:
            return model
        weights = dict(model.named_parameters())  # what was trained once may be frozen now
        slow = {name: p for name, p in weights.items() if p.requires_grad or name in self.fast}
        self.slow = {name: p.detach().float().clone() for name, p in slow.items()}
        for name, value in beside(model, self.fast).items():
            weights[name].data.copy_(value)
        return model

    def before_step(self, model: nn.Module, step: Step) -> None:
        if not self.slow:
            return
        if step.number:  # what the update before this one has made
            self._follow(step.weights)
        else:  # an objective may have weights that come with the task's classes
            for name, weight in step.weights.items():
                self.slow.setdefault(name, weight.detach().float().clone())

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if not self.slow:  # switched off, or an anchor, which is never trained
            return model
        weights = {name: p for name, p in model.named_parameters() if name in self.slow}
        self._follow({name: p for name, p in weights.items() if p.requires_grad})
        if self.config.begin == "fast":
            self.fast = {name: p.detach().clone() for name, p in weights.items()}
        for name, p in weights.items():
            p.data.copy_(self.slow[name])
        return model

    def _follow(self, weights: Mapping[str, Tensor]) -> None:
        """One step of the average of what is trained."""
        for name, weight in weights.items():
            self.slow[name].lerp_(weight.detach().float(), 1 - self.config.decay)
