"""InfLoRA: each task learns in a subspace that the inputs of past tasks do not reach.

Liang & Li 2024, arXiv 2404.00228; code liangyanshuo/InfLoRA. In each adapted layer, with C = X X^T / n over the inputs x in
R^d_in of the task's training examples and M (d_in, k) an orthonormal basis of what past tasks' inputs span:
    A = U_r^T / sqrt(3),   U_r the first r left singular vectors of C - M M^T C;   A stays, B alone is trained.
So the new adapter says nothing to an input of a past task: A x = 0. After the task M takes in the left singular vectors of
C - M M^T C until it holds a share eps of the energy of C (the sum of its squared singular values), as GPM does (Saha 2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from cl_toolkit.engine.access import evaluating
from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.adapters import layers, pairs
from cl_toolkit.ranges import SHARE, at_least
from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Batch

torch = LazyModule("torch")
NOTHING = 1e-6
"""A direction with less than this share of the largest singular value is rounding."""


def directions(covariance: Tensor, past: Tensor, rank: int) -> Tensor:
    """(rank, d_in): the rows of A, of length 1 / sqrt(3). covariance (d_in, d_in), past (d_in, k) orthonormal columns. Where
    the inputs reach fewer directions beyond `past`, the rest are 0."""
    u, s, _ = torch.linalg.svd(covariance - past @ (past.T @ covariance))
    u = u[:, :rank] * (s[:rank] > NOTHING * torch.linalg.matrix_norm(covariance, 2))
    return (u - past @ (past.T @ u)).T / math.sqrt(3)


def widened(past: Tensor, covariance: Tensor, share: float) -> Tensor:
    """`past` (d_in, k) with the fewest directions added that make it hold a share of the energy of covariance (d_in, d_in)."""
    rest = covariance - past @ (past.T @ covariance)
    u, s, _ = torch.linalg.svd(rest)
    energy = covariance.square().sum()
    held = 1 - (rest.square().sum() - s.square().cumsum(0)) / energy  # by the first, the first two, ...
    before = torch.cat([1 - rest.square().sum()[None] / energy, held[:-1]])
    new = u[:, (before < share) & (s > NOTHING * s[0])]
    if not new.numel():
        return past
    # in one order in memory, also after a stop: the last bits of products depend on it, and on these the signs of u
    return torch.linalg.qr(torch.cat([past, new], 1))[0][:, : len(past)].contiguous()


class InfLoRA(Strategy):
    """Give each task an adapter whose A is orthogonal to the inputs of all past tasks, and train B alone.

    The authors raise eps over the stream from 0.95 to 1; here it stays, since a task does not know how many come. After the
    first task their code stops one direction short of it. They keep the complement of M where that is smaller, which gives the
    same projection. Their scaling is 1: `lora_alpha` = `r`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """energy: eps. examples: training examples that C is taken over, all of them in the paper; 0: off."""

        energy: Annotated[float, SHARE] = 0.95
        examples: Annotated[int, at_least(0)] = 200

    tags = Tags(
        paper="Liang & Li 2024, arXiv 2404.00228",
        off={"examples": 0},
        cost=Cost(read_after=200),
        extra_memory="a basis of past inputs per adapted layer",
        life_cycles=("stack", "merge"),
        of_adapter=frozenset({"pairs"}),
        owns=frozenset({"lora_A"}),
        exceptions={1: "the first task's A is made from its inputs too"},
    )
    kept = ("past",)

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.past: dict[str, Tensor] = {}  # layer -> M (d_in, k)

    @property
    def extra_parameters(self) -> int:
        return sum(basis.numel() for basis in self.past.values())

    def cost(self, batch_size: int) -> Cost:
        return replace(super().cost(batch_size), read_after=self.config.examples)

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if not self.config.examples:
            return model
        found = self._covariances(model, task)
        for layer, a, _, _ in pairs(model):
            if len(a) > a.shape[1]:  # there are not so many directions
                wanted = f"expected a rank of at most {a.shape[1]}, the inputs of {layer}; got {len(a)}"
                raise UserError(f"strategies.{self.name}: {wanted}")
            a.data.copy_(directions(found[layer], self._basis(layer, found[layer]), len(a)))
            a.requires_grad_(False)
        return model

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if self.config.examples:
            for layer, covariance in self._covariances(model, task).items():
                self.past[layer] = widened(self._basis(layer, covariance), covariance, self.config.energy)
        return model

    def _basis(self, layer: str, like: Tensor) -> Tensor:
        """M of a layer, nothing at first."""
        return self.past.get(layer, like.new_empty(len(like), 0)).to(like.device)

    def _covariances(self, model: nn.Module, task: TaskView) -> dict[str, Tensor]:
        """Layer -> C (d_in, d_in), fp32, in eval mode. Each process takes its share of the examples."""
        chosen = [task.examples[i] for i in task.share(task.drawn(self.name, self.config.examples))]
        device = next(model.parameters()).device
        sums = {name: torch.zeros(layer.in_features, layer.in_features, device=device) for name, layer in layers(model)}
        count = {name: torch.zeros((), device=device) for name in sums}
        with evaluating(model), torch.no_grad(), inputs_of(model) as seen:
            for start in range(0, len(chosen), task.batch_size):
                part = task.encode(chosen[start : start + task.batch_size], model).to(device)
                seen.clear()
                task.forward(model, part)
                for name, x in seen.items():
                    rows = of_tokens(x, part).float()
                    sums[name] += rows.T @ rows
                    count[name] += len(rows)
        task.sum([*sums.values(), *count.values()])
        return {name: total / count[name] for name, total in sums.items()}


@contextmanager
def inputs_of(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Layer with an adapter -> its input in the last forward."""
    seen: dict[str, Tensor] = {}

    def noted(name: str) -> Any:
        return lambda _module, args: seen.__setitem__(name, args[0].detach())

    hooks = [layer.register_forward_pre_hook(noted(name)) for name, layer in layers(model)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def of_tokens(x: Tensor, part: Batch) -> Tensor:
    """x (B, T, d) or (B, d) as rows (N, d), without those of padding."""
    mask = part.inputs.get("attention_mask")
    if mask is not None and x.shape[:-1] == mask.shape:
        return x[mask.bool()]
    return x.flatten(0, -2)
