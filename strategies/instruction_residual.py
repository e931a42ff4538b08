"""Instruction residual: what instruction tuning has added to a base model is put back after that one was trained on.

Jindal et al. 2024, arXiv 2410.10739. Once, and after each task:
    Theta_r = theta_instruct - theta_base,        theta_new = theta_base, trained on,  +  Theta_r.
The base model loses little by continued pre-training where the tuned one would lose its instructions, and these come back
without data and without training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cl_toolkit.engine.access import beside
from cl_toolkit.errors import UserError
from cl_toolkit.models.language import LanguageModel
from cl_toolkit.models.outside import named_by
from cl_toolkit.ranges import at_least
from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView


BASE = "strategies.instruction_residual.base"


class InstructionResidual(Strategy):
    """Train a base model on, and add what instruction tuning had added to it: the sum is what is scored and kept.

    Released models come in pairs: `model.name` is the tuned one, whose tokenizer and chat template the run has, and `base` the
    other, on which then all tasks are trained. Without `base` the stream brings its own instructions: the first task is
    the tuning, and the tasks after it are trained on from the start model. Within a task curves and probes look at the
    base model. Sums are made in fp32 and rounded once; buffers stay as they are.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """base: a folder or an id of the hub, of the shapes of the run's model; null: see above. scale: of the residual."""

        base: str | None = None
        scale: Annotated[float, at_least(0)] = 1.0

        def identity(self) -> dict[str, str]:
            """What is read beside the run's own model (law 11)."""
            if self.base is None:
                return {}
            with named_by(BASE):
                return LanguageModel(name=self.base).identity()

    tags = Tags(
        paper="Jindal et al. 2024, arXiv 2410.10739",
        off={"scale": 0.0},
        cost=Cost(copies=2.0),
        extra_memory="two copies of the trained weights",
        life_cycles=(None,),
        owns=frozenset({"weights"}),
    )
    kept = ("below", "residual")

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.below: dict[str, Tensor] = {}  # theta_base, as it was last trained
        self.residual: dict[str, Tensor] = {}  # Theta_r

    @property
    def extra_parameters(self) -> int:
        return sum(value.numel() for part in (self.below, self.residual) for value in part.values())

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if not self.config.scale:
            return model
        self.below, self.residual = beside(model, [self.below, self.residual])
        weights = dict(model.named_parameters())  # what was trained once may be frozen now
        if not self.below:
            now = {name: p.detach().clone() for name, p in weights.items() if p.requires_grad}
            self.below = now if self.config.base is None else self._base(now)
            if self.config.base is not None:
                self.residual = difference(now, self.below)
        for name, value in self.below.items():
            weights[name].data.copy_(value)
        return model

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if not self.below:  # switched off, or an anchor, which is never trained
            return model
        weights = {name: p for name, p in model.named_parameters() if name in self.below}
        now = {name: p.detach().clone() for name, p in weights.items()}
        if not self.residual:  # the stream's own instructions
            self.residual = difference(now, self.below)
            return model
        self.below = now
        for name, p in weights.items():
            p.data.copy_(p.float() + self.config.scale * self.residual[name].to(p.device))
        return model

    def _base(self, tuned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of the base model."""
        with named_by(BASE):
            found = dict(LanguageModel(name=self.config.base).load(0).named_parameters())
        for name, value in tuned.items():
            there = tuple(found[name].shape) if name in found else "nothing of that name"
            if there != tuple(value.shape):
                raise UserError(
                    f"{BASE}: {self.config.base}: {name} is {tuple(value.shape)} in the run's model and "
                    f"{there} there; a residual is of two models of one shape"
                )
        return {name: found[name].detach().to(value) for name, value in tuned.items()}


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """one - other by name, in fp32."""
    return {name: value.float() - other[name].to(value.device).float() for name, value in one.items()}
