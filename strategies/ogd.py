"""OGD: steps at right angles to the directions in which a past task's outputs change.

Farajtabar et al. 2020, arXiv 1910.07104, OGD-GTL. For some examples of each past task v = grad_theta f_y(x; theta*), that of
the logit of the true label at the weights after the task; S is an orthonormal basis of all of them. A step goes along
    g - sum_{s in S} (g.s) s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from cl_toolkit.engine.access import beside, evaluating
from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.anchor import check_there
from cl_toolkit.ranges import at_least
from cl_toolkit.strategy import Cost, Strategy, Tags

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.engine.session import Step
    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Example

torch = LazyModule("torch")
NOTHING_NEW = 1e-4
"""A direction of which less than this share is outside the span of the earlier ones adds only noise."""


def orthonormal(basis: Sequence[Tensor], directions: Iterable[Tensor]) -> list[Tensor]:
    """An orthonormal basis, with what (P,) directions span beyond it added by Gram and Schmidt's method."""
    rows = list(basis)
    for v in directions:
        size = float(v.norm())
        for _ in range(2):  # a second time takes off what rounding left of the first
            v = beyond(rows, v)
        if float(v.norm()) > NOTHING_NEW * size:
            rows.append(v / v.norm())
    return rows


def beyond(basis: Iterable[Tensor], v: Tensor) -> Tensor:
    """What of v (P,) is at right angles to an orthonormal basis."""
    for s in basis:
        s = s.to(v.device)
        v = v - (v @ s) * s
    return v


def flat(values: Iterable[Tensor]) -> Tensor:
    """Tensors as one vector (P,), fp32."""
    return torch.cat([value.flatten().float() for value in values])


class OGD(Strategy):
    """Take from the step's gradient all that would change the logits of past tasks' examples, before clipping.

    In a sequence the logits are those of the answer's tokens, each after the true tokens before it, summed. The directions of
    each task stay for good, so that memory grows with the tasks. The paper steps with plain SGD; an optimizer with a memory
    or a scale of its own for each weight (Adam) steps along the projected gradient only roughly.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """examples: directions kept of each task, 200 in the paper; each is as large as the trained weights. 0: off."""

        examples: Annotated[int, at_least(0)] = 20

    tags = Tags(
        forks=True,
        paper="Farajtabar et al. 2020, arXiv 1910.07104",
        off={"examples": 0},
        needs_trained=True,
        cost=Cost(after_task=20, copies_per_task=20.0),
        extra_memory="a copy of the trained weights per direction (on the host where a GPU has no room)",
        life_cycles=(None, "continue"),
        needs=frozenset({"logits"}),
        edits_gradient=True,
    )
    kept = ("sizes", "basis")

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.sizes: dict[str, int] = {}  # of the first task's trained weights, in a direction's order
        self.basis: list[Tensor] = []  # orthonormal, (P,) each

    @property
    def extra_parameters(self) -> int:
        return sum(direction.numel() for direction in self.basis)

    def cost(self, batch_size: int) -> Cost:
        number = self.config.examples
        return replace(super().cost(batch_size), after_task=number, copies_per_task=float(number))

    def before_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        check_there(model, self.sizes, self.name)
        self.basis = beside(model, self.basis)
        return model

    def before_step(self, model: nn.Module, step: Step) -> None:
        if not self.basis:
            return
        grads = step.grads
        if step.number == 0:
            self._moving, self._now = self._among(grads)
        values = [grads[name] for name in self._moving]
        parts = beyond(self._now, flat(values)).split([value.numel() for value in values])
        for name, value, part in zip(self._moving, values, parts, strict=True):
            grads[name] = part.view_as(value).to(value.dtype)

    def _among(self, trained: Collection[str]) -> tuple[list[str], list[Tensor]]:
        """The weights of past tasks that are trained in this one, and a basis of the directions along them: another strategy
        may have frozen some since, and those do not move."""
        moving = [name for name in self.sizes if name in trained]
        if len(moving) == len(self.sizes):
            return moving, self.basis
        numbers = list(self.sizes.values())
        kept = [name in trained for name in self.sizes]

        def part(s: Tensor) -> Tensor:
            return torch.cat([piece for piece, k in zip(s.split(numbers), kept, strict=True) if k])

        return moving, orthonormal([], map(part, self.basis))

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        if not self.config.examples:
            return model
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if missing := next((name for name in trained if self.sizes and name not in self.sizes), None):
            raise UserError(f"strategies.{self.name}: {missing} was not trained in the first task but is trained now")
        self.sizes = self.sizes or {name: weight.numel() for name, weight in trained.items()}
        chosen = [task.examples[i] for i in task.drawn(self.name, self.config.examples)]
        self.basis = orthonormal(self.basis, self._directions(model, task, chosen))
        return model

    def _directions(self, model: nn.Module, task: TaskView, chosen: Sequence[Example]) -> Iterator[Tensor]:
        """The gradient of the true labels' logits of each example, (P,), in eval mode; 0 for what is frozen by now."""
        weights = dict(model.named_parameters())
        parameters = [weights[name] for name in self.sizes]
        moving = [p for p in parameters if p.requires_grad]
        with evaluating(model), torch.enable_grad():
            batch = task.encode(chosen, model)
            for row in range(len(batch.examples)):
                part = batch.rows([row]).to(parameters[0].device)
                value = task.forward(model, part).logits.gather(1, part.asked.labels[:, None]).sum()
                found = dict(zip(moving, torch.autograd.grad(value, moving, allow_unused=True), strict=True))
                yield flat(torch.zeros_like(p) if found.get(p) is None else found[p] for p in parameters)
