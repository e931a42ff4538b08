"""Access to the model inside an engine: the plain module, its mode and precision when it is asked, other weights for a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")


def unwrapped(model: nn.Module) -> Any:
    """The plain module inside an engine, or the module itself; what else it has is a matter of its kind."""
    return model.module if hasattr(model, "allreduce_gradients") else model


def in_lockstep(model: nn.Module) -> bool:
    """Whether every process must make the same number of forwards: under ZeRO-3, where each holds a shard of each weight."""
    return getattr(model, "zero_optimization_stage", lambda: 0)() == 3 and not getattr(unwrapped(model), "whole", False)


def in_one_piece(model: nn.Module) -> AbstractContextManager:
    """For many forwards without gradient: under ZeRO-3 the weights are put together once, where they fit into the memory of
    every process, and nothing is in lockstep. To be entered by all processes; nothing may be trained inside."""
    return getattr(unwrapped(model), "gathered", nullcontext)()


def anywhere(model: nn.Module, found: bool) -> bool:
    """Whether something was found in any of the processes that make their forwards in lockstep; without these, here."""
    if not in_lockstep(model):
        return found
    flag = torch.tensor(float(found), device=next(model.parameters()).device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode (no dropout); the mode of every module is put back (a frozen part may have been in eval mode)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


def scoring_dtype(model: nn.Module) -> torch.dtype:
    """The precision in which a model is scored."""
    module = unwrapped(model)
    return getattr(module, "scoring_dtype", None) or next(module.parameters()).dtype


@contextmanager
def evaluating(model: nn.Module, plain: bool = True) -> Iterator[nn.Module]:
    """No gradient, eval mode, and the one precision in which this model is scored: `scoring_dtype` of the module, by
    autocast; its own weights' precision where it has none. plain: not through what was compiled for training."""
    dtype = getattr(unwrapped(model), "scoring_dtype", None)
    kind = next(model.parameters()).device.type
    able = torch.amp.is_autocast_available(kind)  # a model without memory is only asked for shapes
    cast = torch.autocast(kind, dtype, enabled=dtype is not None) if able else nullcontext()
    with torch.no_grad(), cast, eval_mode(model), eager(model) if plain else nullcontext():
        yield model


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """What was compiled for training runs as it is: questions come in all shapes, each of which would be compiled."""
    modules: list[Any] = [m for m in model.modules() if getattr(m, "_compiled_call_impl", None) is not None]
    compiled = [module._compiled_call_impl for module in modules]
    for module in modules:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in zip(modules, compiled, strict=True):
            module._compiled_call_impl = call


counted: ContextVar[bool] = ContextVar("counted", default=True)
"""Whether the forwards of now are a cost of the method."""


@contextmanager
def uncounted() -> Iterator[None]:
    """Forwards by which it is seen what a model can do: no session counts them."""
    before = counted.set(False)
    try:
        yield
    finally:
        counted.reset(before)


def beside(model: nn.Module, kept: Any) -> Any:
    """Kept tensors, in dicts and lists, where they are at hand: on the model's device, or on the host where they and training
    would not fit there together (`has_room`). Those of a run that goes on come from the disk."""
    device = next(model.parameters()).device
    if not has_room(device, sum(value.nbytes for value in tensors_in(kept) if value.device != device)):
        device = torch.device("cpu")

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(inner) for key, inner in value.items()}
        return [moved(inner) for inner in value] if isinstance(value, list) else value.to(device)

    return moved(kept)


def tensors_in(kept: Any) -> Iterator[Tensor]:
    """The tensors in dicts and lists."""
    if isinstance(kept, dict | list):
        for inner in kept.values() if isinstance(kept, dict) else kept:
            yield from tensors_in(inner)
    else:
        yield kept


def has_room(device: torch.device, size: int) -> bool:
    """Whether so many bytes more leave half of what is free on a GPU; elsewhere the host's memory is all there is."""
    return device.type != "cuda" or 2 * size <= torch.cuda.mem_get_info(device)[0]


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
def swapped(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """The model with other values of some weights, whole by name, for forwards without gradient."""
    module = unwrapped(model)
    if hasattr(module, "swapped_shards"):  # ZeRO-3: a weight is a shard, and the engine knows how to exchange it
        with module.swapped_shards(values):
            yield model
        return
    parameters = dict(module.named_parameters())
    before = {name: parameters[name].data for name in values}
    try:
        for name, value in values.items():
            parameters[name].data = value.to(parameters[name].device)
        yield model
    finally:
        for name, value in before.items():
            parameters[name].data = value


@contextmanager
def whole(weight: Any) -> Iterator[Tensor]:
    """A weight to be read, all of it. Under ZeRO-3 it is put together for a time; all processes ask for the same ones."""
    sharded = hasattr(weight, "ds_id")
    if sharded:
        weight.all_gather(param_list=[weight])
    try:
        yield weight
    finally:
        if sharded:
            weight.partition(param_list=[weight], has_been_updated=False)
