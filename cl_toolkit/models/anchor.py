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
    that is not trained now."""
    if missing := next((name for name in importance if name not in weights), None):
        raise UserError(f"strategies.{who}: {missing} was trained in a past task but is not trained now")
    from cl_toolkit.models.distance import Distance

    terms = (Distance.apply(weights[name], value, anchor[name]) for name, value in importance.items())
    return cast("Tensor", sum(terms))  # a task trains at least one weight
