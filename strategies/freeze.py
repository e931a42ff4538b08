"""Freezing: from the second task on, the embeddings and the lowest layers stay as they are.

Zheng et al. 2025 (Spurious Forgetting), ICLR, arXiv 2501.13453: much of what looks like forgetting is the loss of an alignment
in the lowest layers, so they are kept still once the first task is learned. (The authors also train fewer steps then.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from cl_toolkit.engine.access import blocks_of
from cl_toolkit.errors import UserError
from cl_toolkit.models.targets import adapted
from cl_toolkit.ranges import at_least
from cl_toolkit.strategy import LIFE_CYCLES, Strategy, Tags

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.task_view import TaskView


class Freeze(Strategy):
    """Train neither the embeddings nor the lowest layers from a certain task on.

    With an adapter it is the adapter's weights in these layers that stay, and `embeddings` says nothing unless the adapter
    trains them. A model whose output weights are those of its embeddings has both frozen.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """layers: how many, from the lowest, a third or so in the paper; of an encoder and a decoder, the encoder's first.
        embeddings: the input embeddings too. from_task: the first task that finds them frozen, counted from 1."""

        layers: Annotated[int, at_least(0)] = 0
        embeddings: bool = True
        from_task: Annotated[int, at_least(1)] = 2

    tags = Tags(
        forks=True,
        paper="Zheng et al. 2025, arXiv 2501.13453",
        off={"layers": 0, "embeddings": False},
        life_cycles=LIFE_CYCLES,
        inputs=("conversations", "documents", "image+text"),
    )

    @property
    def as_set(self) -> Tags:
        return replace(self.tags, forks=self.config.from_task > 1, begins=self.config.from_task)

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        # what cannot be frozen is refused in the first task, not in the one that finds it frozen
        still = {weight for module in self._still(model) for weight in module.parameters()}
        if not any(weight.requires_grad for weight in model.parameters() if weight not in still):
            raise UserError(f"strategies.{self.name}: layers: {self.config.layers}: nothing is left to train")
        if task.index + 1 >= self.config.from_task:
            for weight in still:
                weight.requires_grad = False
        return model

    def _still(self, model: nn.Module) -> list[nn.Module]:
        """The parts that are frozen."""
        found = [adapted(model).get_input_embeddings()] if self.config.embeddings else []
        if self.config.layers:
            blocks = blocks_of(model, f"strategies.{self.name}.layers")
            if self.config.layers > len(blocks):
                there = f"expected at most {len(blocks)}, as many as the model has, got {self.config.layers}"
                raise UserError(f"strategies.{self.name}: layers: {there}")
            found += blocks[: self.config.layers]
        return found
