"""What is done with a model's blocks (its layers, one like the other) while it is trained: compiled, or computed again in the
backward instead of kept."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cl_toolkit.engine.access import blocks_of

MODES = {"layers": None, "graphs": "reduce-overhead"}
"""`train.compile` -> torch's name for it. `reduce-overhead` records what is compiled as CUDA graphs."""


@contextmanager
def compiled(model: nn.Module, how: str) -> Iterator[None]:
    """With each block compiled by itself: one compilation serves them all. What is asked of the model meanwhile runs as it is
    (`access.evaluating`).

    What a CUDA graph gives lies where it lay the last time. So a gradient that is to be added to by the next part is copied
    away first, and whoever goes through the parts says where one begins (`begin_part`).
    """
    blocks = blocks_of(model, f"train.compile: {how}")
    for block in blocks:
        block.compile(mode=MODES[how])
    weights = {weight: None for block in blocks for weight in block.parameters() if weight.requires_grad}
    hooks = [weight.register_hook(torch.clone) for weight in weights if MODES[how] is not None]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for block in blocks:
            block._compiled_call_impl = None


def begin_part(how: str) -> None:
    """What CUDA graphs gave for the parts before may be written over from here on. All forwards of a part, a teacher's between
    a forward and its backward too, keep apart what they give."""
    if MODES.get(how) is not None:
        torch.compiler.cudagraph_mark_step_begin()


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """With what is inside a block forgotten after the forward and computed again in the backward, in train and in eval mode
    (transformers' own switch acts in train mode alone)."""
    from torch.utils.checkpoint import checkpoint

    blocks = blocks_of(model, "train.gradient_checkpointing")

    def again(own: Callable) -> Callable:
        @functools.wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return own(*args, **kwargs)
            return checkpoint(own, *args, use_reentrant=False, **kwargs)

        return forward

    for block in blocks:
        block.forward = again(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
