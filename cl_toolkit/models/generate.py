"""Answers by the model: token by token, greedy or sampled, each prompt read once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cl_toolkit.engine.access import anywhere, evaluating, in_lockstep, unwrapped
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.logits import drawn

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.models.fixed import Fixed
    from cl_toolkit.models.text import TextCodec

torch = LazyModule("torch")


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    codec: TextCodec,
    max_new_tokens: int,
    uniforms: Tensor | None = None,
    temperature: float = 1.0,
    fixed: Fixed | None = None,
) -> list[list[int]]:
    """Token ids of the answers, each up to and with the mark that ends it (`codec.stops`), or `max_new_tokens` long.

    prompts: token ids per row; what stands in several rows is read once. uniforms: (B, max_new_tokens) numbers in [0, 1) to
    sample with (`drawn`); None: greedy. The arg max, or a draw from the model's own distribution: no setting of the model's
    folder changes it. The numbers are there before generation starts, so that what a row samples depends neither on the rows
    beside it nor on how rows are spread over processes. fixed: caches of fixed size to go on in; None: one that grows.
    """
    module = unwrapped(model)
    if uniforms is not None:
        uniforms = uniforms.to(next(module.parameters()).device)

    def choose(logits: Tensor, step: int, rows: Tensor) -> Tensor:
        if uniforms is None:
            return logits.float().argmax(-1)
        return drawn(logits.float() / temperature, uniforms[rows, step])

    with evaluating(module), _read(module, prompts, codec, max_new_tokens, fixed) as read:
        answers = _write(model, read, codec, max_new_tokens, choose)
    ends = [next((i for i, token in enumerate(a, 1) if token in codec.stops), len(a)) for a in answers]
    return [a[:end] for a, end in zip(answers, ends, strict=True)]


@contextmanager
def _read(
    module: nn.Module, prompts: Sequence[Sequence[int]], codec: TextCodec, length: int, fixed: Fixed | None
) -> Iterator[Any]:
    """The prompts, read: a row each, of which `length` tokens can go on."""
    distinct = {tuple(prompt): i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    read = codec.read(module, list(distinct))
    rows = torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=read.logits.device)
    if fixed is not None:
        with fixed(read, rows, length) as going:
            yield going
    else:
        yield read.take(rows) if len(distinct) < len(prompts) else read


def _write(model: nn.Module, read: Any, codec: TextCodec, length: int, choose: Callable) -> list[list[int]]:
    """`length` tokens for each row of `read` (a `Prefix`, or what can the same); what stands behind an end mark means nothing.
    A row that has ended leaves the batch, but where it cannot, or where processes go in lockstep: there all go on until the
    last row of the last process has ended."""
    device, together = read.logits.device, in_lockstep(model) or not read.leaves
    stops, rows = torch.tensor(sorted(codec.stops), device=device), torch.arange(len(read.logits), device=device)
    said = torch.full((len(rows), length), codec.pad, device=device)
    going = torch.ones(len(rows), dtype=torch.bool, device=device)
    for step in range(length):
        tokens = choose(read.logits, step, rows)
        said[rows, step] = tokens
        going &= ~torch.isin(tokens, stops)
        left = going.nonzero()[:, 0]
        if step + 1 == length or not anywhere(model, len(left) > 0):
            break
        if not together and len(left) < len(rows):
            read, rows, tokens, going = read.take(left), rows[left], tokens[left], going[left]
        read.on(tokens[:, None])
    return said.tolist()


def in_parts(
    items: Sequence[Any], length: Callable[[Any], int], rows: int, answer: Callable, padding: float = math.inf
) -> list[Any]:
    """What `answer` gives for each item, in their order; it gets those of near length together, at most so many at a time, and
    with at most so much padding."""
    lengths = [length(item) for item in items]
    order = sorted(range(len(items)), key=lengths.__getitem__)
    found: list[Any] = [None] * len(items)
    while order:
        size, filled = 0, 0
        for i in order[:rows]:
            filled += lengths[i]
            if (size + 1) * lengths[i] - filled > padding:
                break
            size += 1
        part, order = order[:size], order[size:]
        for i, given in zip(part, answer([items[i] for i in part]), strict=True):
            found[i] = given
    return found
