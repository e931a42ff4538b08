"""A guest's hooks: what they raise is told with file, class and hook, and what they return is looked at."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from cl_toolkit.errors import UserError, guest, quoted
from cl_toolkit.lazy import LazyModule
from cl_toolkit.types import Outputs

torch = LazyModule("torch")


def is_model(value: Any) -> bool:
    return isinstance(value, torch.nn.Module)


def is_terms(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(term, torch.Tensor) and term.numel() == 1 for name, term in value.items()
    )


def is_batches(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def is_outputs(value: Any) -> bool:
    return isinstance(value, Outputs) and (value.given["logits"] is None or value.given["logits"].dim() == 2)


STRATEGY: dict[str, tuple[Callable[[Any], bool], str]] = {
    "build": (is_model, "the model"),
    "before_task": (is_model, "the model"),
    "batches": (is_batches, "batches: sized and indexable"),
    "loss": (is_terms, "a dict: name -> scalar tensor"),
    "penalty": (is_terms, "a dict: name -> scalar tensor"),
    "before_step": (lambda value: value is None, "nothing"),
    "after_task": (is_model, "the model"),
    "told": (lambda value: isinstance(value, dict), "a dict of JSON data"),
    "state": (lambda value: isinstance(value, dict), "a dict of plain data"),
    "load_state": (lambda value: value is None, "nothing"),
}
"""Hook of a strategy -> (what it may return, in words)."""
OBJECTIVE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "equip": (is_model, "the model"),
    "before_task": (lambda value: hasattr(value, "examples"), "the task"),
    "encode": (lambda value: hasattr(value, "labels"), "a Batch"),
    "forward": (
        is_outputs,
        "Outputs, whose logits, if any, are those of the part's targets, (N, V): see target_logits",
    ),
}
"""The same for an objective."""


def watched(thing: Any, hooks: Mapping[str, tuple[Callable[[Any], bool], str]], where: str) -> Any:
    """The guest's object with its hooks watched; hooks that it does not override stay as they are."""
    base = type(thing).__mro__[-2]  # below `object`: Strategy or Objective
    for name, (right, wanted) in hooks.items():
        if getattr(type(thing), name) is not getattr(base, name):
            setattr(thing, name, _watched_hook(getattr(thing, name), right, wanted, f"{where}: {name}"))
    return thing


def _watched_hook(hook: Any, right: Callable[[Any], bool], wanted: str, place: str) -> Callable:
    owner = type(hook.__self__)

    @functools.wraps(hook)
    def call(*arguments: Any, **named: Any) -> Any:
        with guest(place, owner):
            found = hook(*arguments, **named)
        if not right(found):
            raise UserError(f"{place}: {owner.__name__}: expected it to return {wanted}, got {quoted(found)}")
        return found

    return call
