"""SD-LoRA: the directions of past adapters stay, and how far to go along each is learned anew with every task.

Wu et al. 2025, ICLR, arXiv 2501.13198; code WuYichen-97/SD-Lora-CL. While task t is trained, an adapted layer is
    W = W_0 + sum_{k<t} alpha_k B_k A_k / (|A_k| |B_k|) + B_t A_t,
with the scalars alpha_k and the newest pair trained; past pairs, and all that a past pair's norm says, are frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    from torch import nn


class SDLoRA(Strategy):
    """Train a new adapter in each task, and with it the magnitudes of the past ones, whose directions are frozen.

    One magnitude per layer and past task, as the paper writes it; in the authors' code one per task is shared by all layers.
    It begins at |A_k| |B_k|, or where the task before has left it, so that a task begins with the model that there was; their
    code begins at 0.8 in each task. There the newest pair has a factor of its own too, which its B can be without.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """rescale: whether the magnitudes are trained; false: off, past adapters stay as they are."""

        rescale: bool = True

    tags = Tags(
        forks=True,
        paper="Wu et al. 2025, arXiv 2501.13198",
        off={"rescale": False},
        cost=Cost(copies_per_task=1.0),
        extra_memory="an adapter per past task",
        life_cycles=("stack",),
        of_adapter=frozenset({"pairs"}),
    )

    def build(self, model: nn.Module, index: int) -> nn.Module:
        # here, and not in `before_task`, where others may already have looked at what is trained
        if self.config.rescale:
            from cl_toolkit.models.magnitudes import split

            split(model)
        return model
