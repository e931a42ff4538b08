"""How models answer what they are asked: by writing tokens, or by the class of the largest output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cl_toolkit.engine.access import evaluating, unwrapped
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.generate import generate
from cl_toolkit.models.logits import token_logprobs
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


def token_replies(codec: TextCodec, model: nn.Module, requests: Sequence[Request], rows: int) -> list[Reply]:
    """The answers of a language model to requests of one way."""
    return WRITTEN[type(requests[0])](codec, model, requests, rows)


def _written(codec: TextCodec, model: nn.Module, requests: Sequence[Answer], rows: int) -> list[Reply]:
    prompts = [codec.ids(r.example)[0] for r in requests]
    answers = generate(model, prompts, codec, requests[0].max_new_tokens)
    return [Reply(codec.said(a), tuple(a), cut=not codec.ended(a)) for a in answers]


def _sampled(codec: TextCodec, model: nn.Module, requests: Sequence[Sample], rows: int) -> list[Reply]:
    prompts, length = [codec.opening(r.example) for r in requests], requests[0].max_new_tokens
    uniforms = torch.stack([torch.rand(length, generator=generator_from(r.seed, r.example.id)) for r in requests])
    answers = generate(model, prompts, codec, length, uniforms)
    likely = _likely(
        codec, model, [Logprobs(r.example, tuple(a)) for r, a in zip(requests, answers, strict=True)], rows
    )
    return [
        replace(reply, text=codec.said(a), cut=not codec.ended(a)) for reply, a in zip(likely, answers, strict=True)
    ]


def choice_scores(codec: TextCodec, model: nn.Module, requests: Sequence[Choice], rows: int) -> list[Tensor]:
    """Per request log p(choice | prompt) of each allowed answer, summed over its tokens as they are trained, end mark
    included."""
    allowed = [r.allowed or () for r in requests]
    pairs = [
        pair
        for r, choices in zip(requests, allowed, strict=True)
        for c in choices
        for pair in codec.asked(r.example, codec.answer(r.example, c))
    ]
    sums = torch.cat([part.sum(1).cpu() for part in _logprobs(codec, model, pairs, rows)])
    return list(sums.split([len(choices) for choices in allowed]))


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
    found = (row for part in _logprobs(codec, model, [p for pairs in asked for p in pairs], rows) for row in part.cpu())
    replies = []
    for pairs in asked:
        tokens, logprobs = [], []
        for context, answer in pairs:
            row = next(found)
            tokens += answer
            logprobs += row[len(context) - 1 : len(context) - 1 + len(answer)].tolist()
        replies.append(Reply(tokens=tuple(tokens), logprobs=tuple(logprobs)))
    return replies


def _logprobs(codec: TextCodec, model: nn.Module, pairs: Sequence[tuple], rows: int) -> list[Tensor]:
    """log p of the tokens of (context, tokens), in parts of `rows`; (rows, T - 1) each, as `token_logprobs` gives them."""
    module = unwrapped(model)
    device = next(module.parameters()).device
    parts = []
    with evaluating(module):
        for start in range(0, len(pairs), rows):
            some = [([*c, *a], [IGNORE] * len(c) + a) for c, a in pairs[start : start + rows]]
            batch = codec.padded(some).to(device)
            parts.append(token_logprobs(module(**batch.inputs).logits, batch.labels))
    return parts


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
