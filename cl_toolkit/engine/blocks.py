"""What is done with a model's blocks (its layers, one like the other) while it is trained: compiled, or computed again in the
backward instead of kept."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cl_toolkit.errors import UserError


def blocks_of(model: nn.Module, setting: str) -> list[Any]:
    """The blocks, as transformers marks them. Raises UserError for a model that has none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        raise UserError(
            f"{setting}: {type(model).__name__} has no blocks that transformers knows as such; leave it out"
        )
    return found


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """With each block compiled by itself: one compilation serves them all. What is asked of the model meanwhile runs as it is
    (`access.evaluating`)."""
    blocks = blocks_of(model, "train.compile: layers")
    for block in blocks:
        block.compile()
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None


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
