"""The model as it was, to be asked while it is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from cl_toolkit.engine.access import beside, evaluating, swapped, unwrapped, whole
from cl_toolkit.models.adapters import active, disabled, layers, only

if TYPE_CHECKING:
    from torch import Tensor, nn


class Teacher:
    """A model as it was when it was taken; false before that.

    One fresh adapter (all B are 0) is the same as none, so it is switched off and costs no memory. Of all else that was
    trained at that time a copy is kept, whole on every process.
    """

    def __init__(self) -> None:
        self._taken = self._without_adapter = False
        self._copy: dict[str, Tensor] = {}
        self._active: list[str] = []
        self._groups = 0  # of prompts

    def __bool__(self) -> bool:
        return self._taken

    def take(self, model: nn.Module, moves: bool = False) -> None:
        """Keep the model as it is now, instead of what was kept before. moves: it will `follow` the model, so that a fresh
        adapter is copied too."""
        self._copy, self._active, self._groups = {}, active(model), groups_of(model)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        adapter = [p for n, p in trained.items() if ".lora_B." in n]
        one = bool(adapter) and all(len(layer.active_adapters) == 1 for _, layer in layers(model))
        self._taken, self._without_adapter = True, one and not moves and not any(p.any() for p in adapter)
        self._copy = {
            n: p.detach().clone() for n, p in trained.items() if not (self._without_adapter and ".lora_" in n)
        }

    def follow(self, model: nn.Module, rate: float) -> None:
        """Move what is kept towards the model as it is now: (1 - rate) of the one and rate of the other. All processes call
        it; the model may be inside an engine."""
        self._copy = beside(model, self._copy)
        parameters = dict(unwrapped(model).named_parameters())
        for name, kept in self._copy.items():
            with whole(parameters[name]) as now:
                kept.lerp_(now.detach().to(kept), rate)

    @property
    def parameters(self) -> int:
        """How many numbers were copied."""
        return sum(p.numel() for p in self._copy.values())

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model as it was, in eval mode, for forwards without gradient."""
        self._copy = beside(model, self._copy)
        adapter = disabled(model) if self._without_adapter else only(model, self._active)
        weights = swapped(model, self._copy) if self._copy else nullcontext()
        with adapter, first_groups(model, self._groups), weights, evaluating(unwrapped(model), plain=False):
            yield model

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "taken": self._taken,
            "without_adapter": self._without_adapter,
            "copy": self._copy,
            "active": self._active,
            "groups": self._groups,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._taken, self._without_adapter, self._copy = state["taken"], state["without_adapter"], state["copy"]
        self._active, self._groups = state["active"], state["groups"]


def groups_of(model: nn.Module) -> int:
    """How many groups of prompts are at work (`models.prompted`); 0 also for a model that has none."""
    return getattr(getattr(unwrapped(model), "prompter", None), "groups", 0)


@contextmanager
def first_groups(model: nn.Module, number: int) -> Iterator[None]:
    """With so many groups of prompts at work, the first ones."""
    if groups_of(model) == number:
        yield
        return
    prompter = unwrapped(model).prompter
    before, prompter.groups = prompter.groups, number
    try:
        yield
    finally:
        prompter.groups = before
