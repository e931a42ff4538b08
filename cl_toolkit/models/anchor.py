"""How far weights have moved from where a past task left them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from cl_toolkit.engine.access import unwrapped
from cl_toolkit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


def check_there(model: nn.Module, names: Iterable[str], who: str) -> None:
    """Raise UserError, which names the strategy `who`, for a weight of a past task that the model no longer has: an adapter of
    its own for each task, say. One that is frozen by now is there."""
    there = {name for name, _ in unwrapped(model).named_parameters()}
    if missing := next((name for name in names if name not in there), None):
        raise UserError(f"strategies.{who}: {missing} was trained in a past task and is not there now")


def quadratic(weights: Mapping[str, Tensor], importance: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
    """sum_i F_i (theta_i - theta*_i)^2 over weights by name. A weight of a past task that is not among them is frozen now: it
    does not move. What is kept on the host comes weight by weight."""
    from cl_toolkit.models.distance import Distance

    def term(name: str) -> Tensor:
        weight = weights[name]
        return Distance.apply(weight, importance[name].to(weight.device), anchor[name].to(weight.device))

    none = next(iter(weights.values())).new_zeros(())  # a task trains at least one weight
    return sum((term(name) for name in importance if name in weights), none)
