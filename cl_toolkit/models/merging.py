"""Task vectors put together, by PEFT's functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cl_toolkit.lazy import LazyModule

if TYPE_CHECKING:
    from torch import Tensor

torch = LazyModule("torch")


def elected(vectors: Sequence[Tensor], density: float) -> Tensor:
    """TIES: each vector trimmed to the floor(density * size) largest of its elements; of each element the mean of what agrees
    in sign with the sum (0 counts as positive). vectors: of one shape. density: in (0, 1)."""
    from peft.utils.merge_utils import ties

    return ties(list(vectors), torch.ones(len(vectors), device=vectors[0].device), density)
