"""One line: what the method does. Paper and equation, or "ours"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cl_toolkit import Strategy, Tags, at_least

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView


class MyIdea(Strategy):
    """Pull the weights towards where the last task left them: weight * sum (w - w_old)^2. Replace this rule by yours.

    The other hooks: build, before_task, batches, loss, before_step. Delete what you do not use; an absent hook costs nothing.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """weight: of the penalty; 0 is sequential training."""

        weight: Annotated[float, at_least(0)] = 1.0

    tags = Tags(paper="ours", off={"weight": 0.0})
    kept = ("anchor",)  # survives a stop between tasks

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.anchor: dict[str, Tensor] = {}

    def penalty(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        known = [name for name in weights if name in self.anchor]
        if not known or self.config.weight == 0:
            return {}  # a term that is off is absent
        distance = sum(((weights[name] - self.anchor[name].to(weights[name])) ** 2).sum() for name in known)
        return {self.name: self.config.weight * distance}

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if self.config.weight > 0:
            self.anchor = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        return model
