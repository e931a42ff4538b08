"""How far weights have moved from where a past task left them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from cl_toolkit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def quadratic(
    weights: Mapping[str, Tensor], importance: Mapping[str, Tensor], anchor: Mapping[str, Tensor], who: str
) -> Tensor:
    """sum_i F_i (theta_i - theta*_i)^2 over weights by name. Raises UserError, which names the strategy `who`, for a weight
    that is not trained now. What is kept on the host comes weight by weight."""
    if missing := next((name for name in importance if name not in weights), None):
        raise UserError(f"strategies.{who}: {missing} was trained in a past task but is not trained now")
    from cl_toolkit.models.distance import Distance

    def term(name: str) -> Tensor:
        weight = weights[name]
        return Distance.apply(weight, importance[name].to(weight.device), anchor[name].to(weight.device))

    return cast("Tensor", sum(term(name) for name in importance))  # a task trains at least one weight
