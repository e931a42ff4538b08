"""How models answer what they are asked: by writing tokens, or by the class of the largest output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from cl_toolkit.engine.access import evaluating, unwrapped
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.generate import generate
from cl_toolkit.models.likelihoods import after, target_logprobs
from cl_toolkit.models.prefix import Prefix, goes_on
from cl_toolkit.models.requests import Answer, Choice, Logprobs, Reply, Request, Sample
from cl_toolkit.seeds import generator_from
from cl_toolkit.types import IGNORE

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cl_toolkit.models.kind import Codec
    from cl_toolkit.models.text import TextCodec
else:
    torch = LazyModule("torch")


PADDING = 256
"""Tokens of padding that a forward may have: about what one more forward costs."""


def token_replies(codec: TextCodec, model: nn.Module, requests: Sequence[Request], rows: int) -> list[Reply]:
    """The answers of a language model to requests of one way, at most so many rows at a time, those of near length together."""
    return WRITTEN[type(requests[0])](codec, model, requests, rows)


def _in_parts(
    items: Sequence[Any], length: Callable[[Any], int], rows: int, answer: Callable, padding: float = math.inf
) -> list[Any]:
    """What `answer` gives for each item, in their order; it gets so many at a time, of near length, at most, and no more than so
    much padding as is dearer than one more forward."""
    order = sorted(range(len(items)), key=[length(item) for item in items].__getitem__)
    found: list[Any] = [None] * len(items)
    while order:
        size, filled = 0, 0
        for i in order[:rows]:
            filled += length(items[i])
            if (size + 1) * length(items[i]) - filled > padding:
                break
            size += 1
        part, order = order[:size], order[size:]
        for i, given in zip(part, answer([items[i] for i in part]), strict=True):
            found[i] = given
    return found


def _written(codec: TextCodec, model: nn.Module, requests: Sequence[Answer], rows: int) -> list[Reply]:
    limit = requests[0].max_new_tokens
    prompts = [codec.ids(r.example)[0] for r in requests]
    answers = _in_parts(prompts, len, rows, lambda some: generate(model, some, codec, limit))
    return [Reply(codec.said(a), tuple(a), cut=not codec.ended(a)) for a in answers]


def _sampled(codec: TextCodec, model: nn.Module, requests: Sequence[Sample], rows: int) -> list[Reply]:
    limit = requests[0].max_new_tokens
    asked = [
        (codec.opening(r.example), torch.rand(limit, generator=generator_from(r.seed, r.example.id))) for r in requests
    ]

    def drawn(some: Sequence[tuple[list[int], Tensor]]) -> list[list[int]]:
        prompts, uniforms = zip(*some, strict=True)
        return generate(model, prompts, codec, limit, torch.stack(uniforms))

    answers = _in_parts(asked, lambda pair: len(pair[0]), rows, drawn)
    likely = _likely(
        codec, model, [Logprobs(r.example, tuple(a)) for r, a in zip(requests, answers, strict=True)], rows
    )
    return [
        replace(reply, text=codec.said(a), cut=not codec.ended(a)) for reply, a in zip(likely, answers, strict=True)
    ]


def choice_scores(codec: TextCodec, model: nn.Module, requests: Sequence[Choice], rows: int) -> list[Tensor]:
    """Per request log p(choice | prompt) of each allowed answer, summed over its tokens as they are trained, end mark
    included. A prompt goes through the model once, whatever number of answers is allowed."""
    module = unwrapped(model)
    asked = [(codec.opening(r.example), [codec.answer(r.example, c) for c in r.allowed or ()]) for r in requests]
    if not goes_on(module, codec.pad):
        rows_of = iter(_logprobs(codec, model, [(prompt, a) for prompt, answers in asked for a in answers], rows))
        return [torch.tensor([sum(next(rows_of)) for _ in answers]) for _, answers in asked]

    def scored(some: Sequence[tuple[list[int], list[list[int]]]]) -> list[Tensor]:
        with evaluating(module):
            read = Prefix(module, [prompt for prompt, _ in some], codec.pad)
            return after(read, [answers for _, answers in some], rows, codec.pad)

    return _in_parts(asked, lambda pair: len(pair[0]), rows, scored, PADDING)


def _chosen(codec: TextCodec, model: nn.Module, requests: Sequence[Choice], rows: int) -> list[Reply]:
    replies = []
    for request, scores in zip(requests, choice_scores(codec, model, requests, rows), strict=True):
        allowed = request.allowed or ()
        if request.per_byte:
            scores = scores / torch.tensor([max(1, len(choice.encode())) for choice in allowed])
        replies.append(Reply(allowed[int(scores.argmax())], chance=1 / len(allowed)))
    return replies


def _likely(codec: TextCodec, model: nn.Module, requests: Sequence[Logprobs], rows: int) -> list[Reply]:
    asked = [codec.asked(r.example, r.answer) for r in requests]
    found = iter(_logprobs(codec, model, [pair for pairs in asked for pair in pairs], rows))
    replies = []
    for pairs in asked:
        tokens = tuple(token for _, answer in pairs for token in answer)
        replies.append(Reply(tokens=tokens, logprobs=tuple(p for _ in pairs for p in next(found))))
    return replies


def _logprobs(codec: TextCodec, model: nn.Module, pairs: Sequence[tuple], rows: int) -> list[list[float]]:
    """Per (context, tokens) the log p of each of these tokens."""
    module = unwrapped(model)
    device, few = next(module.parameters()).device, goes_on(module, codec.pad)

    def scored(some: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        batch = codec.padded([([*context, *tokens], [IGNORE] * len(context) + [*tokens]) for context, tokens in some])
        start = min(len(context) for context, _ in some)  # before it there is nothing to be scored
        keep = batch.labels.shape[1] - start + 1
        with evaluating(module):
            options = {"logits_to_keep": keep} if few else {}
            logits = module(**batch.to(device).inputs, **options).logits[:, -keep:]
        found = iter(target_logprobs(logits[:, :-1], batch.labels[:, start:].to(device)).tolist())
        return [list(islice(found, len(tokens))) for _, tokens in some]

    return _in_parts(pairs, lambda pair: len(pair[0]) + len(pair[1]), rows, scored, PADDING)


WRITTEN: dict[type, Callable] = {Answer: _written, Choice: _chosen, Logprobs: _likely, Sample: _sampled}


def class_replies(codec: Codec, model: nn.Module, requests: Sequence[Request]) -> list[Reply]:
    """The answers of a model whose outputs stand for `model.classes`, of one forward. Where answers are restricted, the
    likeliest of these; a class that the model has never seen has no output."""
    module = unwrapped(model)
    batch = codec.prompts([r.example for r in requests]).to(next(module.parameters()).device)
    with evaluating(module):
        logits = module(**batch.inputs).logits
    return [CLASSIFIED[type(r)](r, row, module.classes) for r, row in zip(requests, logits, strict=True)]


def _class_of(request: Answer | Choice, row: Tensor, classes: Sequence[str]) -> Reply:
    allowed = request.allowed
    known = [i for i, label in enumerate(classes) if allowed is None or label in allowed]
    text = classes[known[int(row[known].argmax())]] if known else ""
    return Reply(text, chance=1 / max(1, len(allowed or classes)))


def _class_logprob(request: Logprobs, row: Tensor, classes: Sequence[str]) -> Reply:
    index = classes.index(request.example.target) if request.answer is None else request.answer[0]
    return Reply(classes[index], (index,), (float(row.float().log_softmax(0)[index]),))


def _class_sample(request: Sample, row: Tensor, classes: Sequence[str]) -> Reply:
    u = torch.rand(1, generator=generator_from(request.seed, request.example.id))
    index = int(torch.searchsorted(row.float().softmax(0).cumsum(0).cpu(), u, right=True).clamp(max=len(classes) - 1))
    return Reply(classes[index], (index,), (float(row.float().log_softmax(0)[index]),))


CLASSIFIED: dict[type, Callable] = {
    Answer: _class_of,
    Choice: _class_of,
    Logprobs: _class_logprob,
    Sample: _class_sample,
}
