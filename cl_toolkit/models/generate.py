"""Answers by the model: token by token, greedy or sampled, each prompt read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cl_toolkit.engine.access import anywhere, evaluating, in_lockstep, unwrapped
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.logits import drawn

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.models.text import TextCodec

torch = LazyModule("torch")


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    codec: TextCodec,
    max_new_tokens: int,
    uniforms: Tensor | None = None,
    temperature: float = 1.0,
) -> list[list[int]]:
    """Token ids of the answers, each up to and with the mark that ends it (`codec.stops`), or `max_new_tokens` long.

    prompts: token ids per row; what stands in several rows is read once. uniforms: (B, max_new_tokens) numbers in [0, 1) to
    sample with (`drawn`); None: greedy. The arg max, or a draw from the model's own distribution: no setting of the model's
    folder changes it. The numbers are there before generation starts, so that what a row samples depends neither on the rows
    beside it nor on how rows are spread over processes.
    """
    module = unwrapped(model)
    if uniforms is not None:
        uniforms = uniforms.to(next(module.parameters()).device)

    def choose(logits: Tensor, step: int, rows: Tensor) -> Tensor:
        if uniforms is None:
            return logits.float().argmax(-1)
        return drawn(logits.float() / temperature, uniforms[rows, step])

    with evaluating(module):
        answers = _write(model, prompts, codec, max_new_tokens, choose)
    ends = [next((i for i, token in enumerate(a, 1) if token in codec.stops), len(a)) for a in answers]
    return [a[:end] for a, end in zip(answers, ends, strict=True)]


def _write(
    model: nn.Module, prompts: Sequence[Sequence[int]], codec: TextCodec, length: int, choose: Callable
) -> list[list[int]]:
    """`length` tokens a row; what stands behind an end mark means nothing. A row that has ended leaves the batch, but where
    processes go in lockstep: there all go on until the last row of the last process has ended."""
    module, together = unwrapped(model), in_lockstep(model)
    distinct = {tuple(prompt): i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    read = codec.read(module, list(distinct))
    device = read.logits.device
    if len(distinct) < len(prompts):
        read = read.take(torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=device))
    stops, rows = torch.tensor(sorted(codec.stops), device=device), torch.arange(len(prompts), device=device)
    said = torch.full((len(prompts), length), codec.pad, device=device)
    for step in range(length):
        tokens = choose(read.logits, step, rows)
        said[rows, step] = tokens
        going = (~torch.isin(tokens, stops)).nonzero()[:, 0]
        if step + 1 == length or not anywhere(model, len(going) > 0):
            break
        if not together and len(going) < len(rows):
            read, rows, tokens = read.take(going), rows[going], tokens[going]
        read.on(tokens[:, None])
    return said.tolist()
