"""Scorers as rewards: several of them by name, each with a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.measure.scorers import as_scorer, score
from cl_toolkit.registry import SCORERS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cl_toolkit.sources import Source
    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Example
else:
    torch = LazyModule("torch")


class Rewards:
    """A weighted sum of scorers, registered or `file.py:function`; one of which less is better counts below 0. where: the
    setting that names them. Raises UserError for a name that there is not, and for a scorer that reads no answer."""

    def __init__(self, weights: Mapping[str, float], where: str):
        self.weights = dict(weights)
        self.scorers = {name: as_scorer(SCORERS.get(name, where)) for name in weights}
        for name, scorer in self.scorers.items():
            if scorer.reads != "answer":
                raise UserError(
                    f"{where}: {name}: reads {scorer.reads}, and a reward is for an answer that was written"
                )

    def sources(self) -> dict[str, Source]:
        """Those that are not built in, by the setting that names them."""
        found = {f"rewards.{name}": SCORERS.source(name) for name in self.weights}
        return {name: source for name, source in found.items() if source is not None}

    def __call__(self, task: TaskView, examples: Sequence[Example], rollouts: Sequence[Sequence[list[int]]]) -> Tensor:
        """What rollouts (B, n) are worth, (B, n)."""
        if not self.scorers:
            return torch.zeros(len(rollouts), len(rollouts[0]))

        def worth(example: Example, answer: list[int]) -> float:
            said = task.codec.said(answer)
            return sum(
                (1 if scorer.higher_is_better else -1)
                * self.weights[name]
                * score(task.name, name, scorer, example, said)
                for name, scorer in self.scorers.items()
            )

        return torch.tensor([[worth(e, a) for a in row] for e, row in zip(examples, rollouts, strict=True)])
