"""Who writes a model's answers, by the config's section `generation`: our own loop, or vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from cl_toolkit.engine import launch
from cl_toolkit.errors import UserError
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.fixed import Fixed
from cl_toolkit.models.generate import generate, in_parts

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cl_toolkit.models.sections import Generation
    from cl_toolkit.models.text import TextCodec
else:
    torch = LazyModule("torch")


class Writer(Protocol):
    """Writes answers."""

    def __call__(
        self,
        model: nn.Module,
        codec: TextCodec,
        prompts: Sequence[Sequence[int]],
        length: int,
        rows: int | None = None,
        seeds: Sequence[int] | None = None,
        temperature: float = 1.0,
    ) -> list[list[int]]:
        """Token ids of the answers, each up to and with the mark that ends it (`codec.stops`), or `length` long.

        prompts: token ids of each. rows: how many may go through the model at a time; None: all. seeds: of each, to draw from
        the model's own distribution with: what is drawn depends on nothing else; None: greedy.
        """


class Own:
    """Token by token through the model itself (`generate`), prompts of near length together. fixed: caches of one size."""

    def __init__(self, fixed: Fixed | None = None):
        self.fixed = fixed

    def __call__(self, model, codec, prompts, length, rows=None, seeds=None, temperature=1.0) -> list[list[int]]:
        uniforms = None
        if seeds is not None:
            draws = [torch.Generator().manual_seed(seed) for seed in seeds]
            uniforms = torch.stack([torch.rand(length, generator=draw) for draw in draws])

        def written(some: Sequence[int]) -> list[list[int]]:
            drawn = None if uniforms is None else uniforms[list(some)]
            return generate(model, [prompts[i] for i in some], codec, length, drawn, temperature, self.fixed)

        every = range(len(prompts))
        return written(every) if rows is None else in_parts(every, lambda i: len(prompts[i]), rows, written)


@dataclass(frozen=True)
class Engine:
    """make: one for a run on a device; room: tokens of its longest prompt and answer. check: raises UserError for settings that
    cannot work, at a ZeRO stage (None: nothing is sharded). Imports nothing heavy."""

    make: Callable[[Generation, torch.device, int], Writer]
    check: Callable[[Generation, int | None], None]


def make_own(section: Generation, device: torch.device, room: int) -> Own:
    return Own(Fixed() if section.cache == "static" else None)


def check_own(section: Generation, stage: int | None) -> None:
    if section.cache == "static" and stage == 3:
        raise UserError(
            "generation.cache: static: ZeRO-3 gathers weights layer by layer as it goes; use dynamic, or ZeRO 0 to 2"
        )


def make_vllm(section: Generation, device: torch.device, room: int) -> Writer:
    from cl_toolkit.models.by_vllm import VLLM

    if device.type != "cuda":
        raise UserError(f"generation.engine: vllm: needs a GPU, and engine.device is {device.type}; use own")
    return VLLM(section.gpu_memory_utilization, room)


def check_vllm(section: Generation, stage: int | None) -> None:
    if find_spec("vllm") is None:
        raise UserError(
            "generation.engine: vllm: is not installed here; use own, or pip install 'cl-toolkit[vllm]' on a machine with a GPU"
        )
    if launch.world() > 1 or stage == 3:
        raise UserError(
            "generation.engine: vllm: takes whole weights, in one process; use own with several processes or ZeRO-3"
        )
    if section.cache != "dynamic":
        raise UserError(f"generation.cache: {section.cache}: vLLM keeps a cache of its own; leave it out")


ENGINES = {"own": Engine(make_own, check_own), "vllm": Engine(make_vllm, check_vllm)}


def check_generation(section: Generation, stage: int | None) -> None:
    """Raise UserError for what cannot write answers here."""
    ENGINES[section.engine].check(section, stage)


def make_writer(section: Generation, device: torch.device, room: int) -> Writer:
    """Who writes the answers of a run."""
    return ENGINES[section.engine].make(section, device, room)
