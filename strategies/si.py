"""Synaptic intelligence: weights are held according to how much they helped to lower past losses.

Zenke et al. 2017, arXiv 1703.04200. Along the path of task k, with g the gradient of the loss without any penalty,
    omega^k_i = - sum over steps of g_i * (change of theta_i in that step),
    Omega_i   = sum_{k<t} max(0, omega^k_i) / ( (total change of theta_i in task k)^2 + xi ),
    L         = L_new + c * sum_i Omega_i (theta_i - theta*_i)^2,      theta*: the weights after the last task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cl_toolkit.engine.access import beside
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.anchor import check_there, quadratic
from cl_toolkit.ranges import above, at_least
from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from cl_toolkit.engine.session import Step
    from cl_toolkit.task_view import TaskView

torch = LazyModule("torch")


def importance(path: Tensor, change: Tensor, damping: float) -> Tensor:
    """max(0, omega) / (change^2 + xi). A negative path integral (steps that raised the loss) would drive the weight away
    from where it was; it counts as 0."""
    return path.clamp(min=0) / (change**2 + damping)


class SI(Strategy):
    """A quadratic penalty, weighted by each weight's share in the decrease of past losses.

    The gradient is the one before clipping, and before another strategy (`agem`) has edited it; the change is the one that
    the optimizer really made. This computes nothing extra, but the weights and gradients of a step are kept until the next
    step.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """weight: c, in the paper 0.1 and more for small networks on digits. With a small language model 1 held nothing and
        1000 cost learning; the default lies between (LOG.md). damping: xi, which bounds the importance of a weight that
        hardly moved."""

        weight: Annotated[float, at_least(0)] = 100.0
        damping: Annotated[float, above(0)] = 0.1

    tags = Tags(
        paper="Zenke et al. 2017, arXiv 1703.04200",
        cost=Cost(copies=6.0),
        extra_memory="six copies of the trained weights",
        off={"weight": 0.0},
        life_cycles=(None, "continue"),
    )
    kept = ("omega", "anchor")

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.omega: dict[str, Tensor] = {}  # name -> Omega
        self.anchor: dict[str, Tensor] = {}  # name -> theta*
        self._first: dict[str, Tensor] = {}  # weights at the start of the task
        self._last: dict[str, tuple[Tensor, Tensor]] = {}  # name -> (weight, gradient) of the step before
        self._path: dict[str, Tensor] = {}  # omega of this task

    @property
    def extra_parameters(self) -> int:
        return sum(value.numel() for kept in (self.omega, self.anchor) for value in kept.values())

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        check_there(model, self.anchor, self.name)
        self.omega, self.anchor = beside(model, [self.omega, self.anchor])
        self._first, self._last, self._path = {}, {}, {}
        return model

    def penalty(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self.omega:
            return {}
        return {self.name: self.config.weight * quadratic(weights, self.omega, self.anchor)}

    def before_step(self, model: nn.Module, step: Step) -> None:
        if not self.config.weight:
            return
        weights, grads = step.weights, step.grads
        if not self._last:
            self._first = {name: weight.detach().clone() for name, weight in weights.items()}
            self._last = {name: (first.clone(), torch.empty_like(first)) for name, first in self._first.items()}
            self._path = {name: torch.zeros_like(first) for name, first in self._first.items()}
        else:
            self._walk(weights)
        for name, (weight, grad) in self._last.items():
            weight.copy_(weights[name].detach())
            grad.copy_(grads[name].detach())
            if name in step.penalty_grads:
                grad.sub_(step.penalty_grads[name])

    def _walk(self, now: Mapping[str, Tensor]) -> None:
        """Add the step that led here to the path."""
        for name, (weight, grad) in self._last.items():
            self._path[name].addcmul_(grad, now[name].detach() - weight, value=-1)

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if not self._last:  # switched off, or a task that was never trained
            return model
        now = {name: p.detach().clone() for name, p in model.named_parameters() if name in self._last}
        self._walk(now)
        for name, path in self._path.items():
            new = importance(path, now[name] - self._first[name], self.config.damping)
            self.omega[name] = self.omega.get(name, 0) + new
        self.anchor = self.anchor | now  # a weight that is frozen by now stays where it was
        self._first, self._last, self._path = {}, {}, {}
        return model
