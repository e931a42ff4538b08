"""The model as it was, to be asked while it is trained on."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from cl_toolkit.engine.access import evaluating, swapped, unwrapped
from cl_toolkit.models.adapters import disabled, layers

if TYPE_CHECKING:
    from torch import nn


class Reference:
    """The model as it is now, to be asked later while it is trained on.

    Where the trained weights are one fresh adapter (all B are 0), switching it off is the same thing and costs no memory;
    else a copy of the trained weights is kept, whole on every process. `parameters`: how many numbers were copied.
    """

    def __init__(self, model: nn.Module):
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        adapter = [p for n, p in trained.items() if ".lora_B." in n]
        one = all(len(layer.active_adapters) == 1 for _, layer in layers(model)) if adapter else False
        fresh = one and all(".lora_" in n for n in trained) and not any(p.any() for p in adapter)
        self._copy = None if fresh else {n: p.detach().clone() for n, p in trained.items()}
        self.parameters = sum(p.numel() for p in self._copy.values()) if self._copy else 0

    @contextmanager
    def restored(self, model: nn.Module):
        """The model as it was, in eval mode."""

        change = disabled(model) if self._copy is None else swapped(model, self._copy)
        with change, evaluating(unwrapped(model)):
            yield model
