"""Answers by the model: token by token, greedy or sampled, each prompt read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cl_toolkit.engine.access import anywhere, evaluating, in_lockstep, unwrapped
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.logits import drawn
from cl_toolkit.models.prefix import Prefix, goes_on

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.models.text import TextCodec

torch = LazyModule("torch")


@contextmanager
def own_settings(module: nn.Module):
    """The model without the generation settings of its folder: transformers takes from there whatever a call leaves open,
    such as a penalty on repeated words, so that greedy were not the arg max and a rollout not the policy's own."""
    from transformers import GenerationConfig

    holders = [m for m in module.modules() if "generation_config" in vars(m)]
    before = [m.generation_config for m in holders]
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, settings in zip(holders, before, strict=True):
            holder.generation_config = settings


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

    write = _from_cache if goes_on(module, codec.pad) else _by_transformers
    with evaluating(module):
        answers = write(model, prompts, codec, max_new_tokens, choose)
    ends = [next((i for i, token in enumerate(a, 1) if token in codec.stops), len(a)) for a in answers]
    return [a[:end] for a, end in zip(answers, ends, strict=True)]


def _from_cache(
    model: nn.Module, prompts: Sequence[Sequence[int]], codec: TextCodec, length: int, choose: Callable
) -> list[list[int]]:
    """`length` tokens a row; what stands behind an end mark means nothing. A row that has ended leaves the batch, but where
    processes go in lockstep: there all go on until the last row of the last process has ended."""
    distinct = {tuple(prompt): i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    read = Prefix(unwrapped(model), list(distinct), codec.pad)
    device = read.mask.device
    if len(distinct) < len(prompts):
        read = read.take(torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=device))
    stops = torch.tensor(sorted(codec.stops), device=device)
    said = torch.full((len(prompts), length), codec.pad, device=device)
    rows, together = torch.arange(len(prompts), device=device), in_lockstep(model)
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


class Chosen:
    """A logits processor of transformers that leaves the chosen tokens of some rows alone possible; for greedy decoding."""

    def __init__(self, choose: Callable[[Tensor, int, Tensor], Tensor], rows: Tensor):
        self.choose, self.rows, self.step = choose, rows, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = self.choose(scores, self.step, self.rows)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


def _by_transformers(
    model: nn.Module, prompts: Sequence[Sequence[int]], codec: TextCodec, length: int, choose: Callable
) -> list[list[int]]:
    """The same from a model whose cache cannot be shared: transformers knows what state it keeps. Prompts of one length go
    together, since such a model may see its padding, but where processes go in lockstep."""
    from transformers import GenerationConfig, LogitsProcessorList

    module, together = unwrapped(model), in_lockstep(model)
    device = next(module.parameters()).device
    settings = GenerationConfig(
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=sorted(codec.stops),
        pad_token_id=codec.pad,
        use_cache=True,
    )
    answers: list[list[int]] = [[]] * len(prompts)
    for width in [max(map(len, prompts))] if together else sorted({*map(len, prompts)}):
        rows = [i for i, prompt in enumerate(prompts) if together or len(prompt) == width]
        padding = [width - len(prompts[i]) for i in rows]
        ids = [[codec.pad] * n + list(prompts[i]) for i, n in zip(rows, padding, strict=True)]
        with own_settings(module):
            out = module.generate(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor([[0] * n + [1] * (width - n) for n in padding], device=device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([Chosen(choose, torch.tensor(rows, device=device))]),
                synced_gpus=together,
            )
        for i, answer in zip(rows, out[:, width:].tolist(), strict=True):
            answers[i] = answer
    return answers
