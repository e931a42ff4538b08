"""How models answer what they are asked: by writing tokens, or by the class of the largest output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from cl_toolkit.engine.access import evaluating, unwrapped
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.generate import in_parts
from cl_toolkit.models.likelihoods import after
from cl_toolkit.models.logits import drawn
from cl_toolkit.models.plain import completed, continued
from cl_toolkit.models.requests import (
    Answer,
    Choice,
    Completion,
    Continuation,
    Logprobs,
    Reply,
    Request,
    Sample,
)
from cl_toolkit.seeds import generator_from, seed_from

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


def _written(codec: TextCodec, model: nn.Module, requests: Sequence[Answer], rows: int) -> list[Reply]:
    limit = requests[0].max_new_tokens
    prompts = [row.tokens[: row.prompt].tolist() for row in codec.rows([r.example for r in requests])]
    answers = codec.writer(model, codec, prompts, limit, rows)
    return [Reply(codec.said(a), tuple(a), cut=not codec.ended(a)) for a in answers]


def _sampled(codec: TextCodec, model: nn.Module, requests: Sequence[Sample], rows: int) -> list[Reply]:
    limit = requests[0].max_new_tokens
    seeds = [seed_from(r.seed, r.example.id) for r in requests]
    answers = codec.writer(model, codec, [codec.opening(r.example) for r in requests], limit, rows, seeds)
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
    of_row = [(r.example, choice) for r in requests for choice in r.allowed or ()]
    answers = iter(codec.answers(*zip(*of_row, strict=True)))
    codec.rows([r.example for r in requests if r.example.text is None])  # encoded together
    asked = [(codec.opening(r.example), list(islice(answers, len(r.allowed or ())))) for r in requests]
    if not codec.goes_on(module):
        rows_of = iter(_logprobs(codec, model, [(prompt, a) for prompt, answers in asked for a in answers], rows))
        return [torch.tensor([sum(next(rows_of)) for _ in answers]) for _, answers in asked]

    def scored(some: Sequence[tuple[list[int], list[list[int]]]]) -> list[Tensor]:
        with evaluating(module):
            read = codec.read(module, [prompt for prompt, _ in some])
            return after(read, [answers for _, answers in some], rows, codec.pad)

    return in_parts(asked, lambda pair: len(pair[0]), rows, scored, PADDING)


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

    def scored(some: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        with evaluating(module):
            return codec.likely(module, some)

    return in_parts(pairs, lambda pair: len(pair[0]) + len(pair[1]), rows, scored, PADDING)


WRITTEN: dict[type, Callable] = {
    Answer: _written,
    Choice: _chosen,
    Logprobs: _likely,
    Sample: _sampled,
    Continuation: continued,
    Completion: completed,
}


def class_replies(codec: Codec, model: nn.Module, requests: Sequence[Request], rows: int) -> list[Reply]:
    """The answers of a model whose outputs stand for `model.classes` to requests of one way, at most so many rows at a time.
    Where answers are restricted, the likeliest of these; a class that the model has never seen has no output."""
    module = unwrapped(model)
    device = next(module.parameters()).device
    parts = ([r.example for r in requests[i : i + rows]] for i in range(0, len(requests), rows))
    with evaluating(module):
        logits = torch.cat([module(**codec.prompts(part).to(device).inputs).logits for part in parts])
    return CLASSIFIED[type(requests[0])](requests, logits, module.classes)


def text_class_replies(codec: TextCodec, model: nn.Module, requests: Sequence[Request], rows: int) -> list[Reply]:
    """The same about texts, those of near length together."""
    return in_parts(
        requests, lambda r: codec.length(r.example), rows, lambda some: class_replies(codec, model, some, rows)
    )


def _classes_of(requests: Sequence[Answer | Choice], logits: Tensor, classes: Sequence[str]) -> list[Reply]:
    number: dict[tuple[str, ...] | None, int] = {}
    of_row = [number.setdefault(request.allowed, len(number)) for request in requests]
    known = [[i for i, label in enumerate(classes) if allowed is None or label in allowed] for allowed in number]
    said = []
    mask = torch.zeros(len(known), len(classes), dtype=torch.bool)
    for row, (allowed, outputs) in enumerate(zip(number, known, strict=True)):
        mask[row, outputs] = True
        chance = 1 / max(1, len(classes if allowed is None else allowed))
        said.append({i: Reply(classes[i], chance=chance) for i in outputs} or {0: Reply(chance=chance)})
    if not mask.all():
        logits = logits.masked_fill(~mask[torch.tensor(of_row)].to(logits.device), -torch.inf)
    largest = logits.argmax(1).tolist() if classes else [0] * len(requests)
    return [said[which][i] for which, i in zip(of_row, largest, strict=True)]


def _class_logprobs(requests: Sequence[Logprobs], logits: Tensor, classes: Sequence[str]) -> list[Reply]:
    chosen = [classes.index(r.example.target) if r.answer is None else r.answer[0] for r in requests]
    return _class_likely(chosen, logits, classes)


def _class_samples(requests: Sequence[Sample], logits: Tensor, classes: Sequence[str]) -> list[Reply]:
    uniforms = torch.cat([torch.rand(1, generator=generator_from(r.seed, r.example.id)) for r in requests])
    return _class_likely(drawn(logits, uniforms).tolist(), logits, classes)


def _class_likely(chosen: Sequence[int], logits: Tensor, classes: Sequence[str]) -> list[Reply]:
    """Replies of these classes, with how likely each is."""
    logprobs = logits.float().log_softmax(1)[range(len(chosen)), chosen].tolist()
    return [Reply(classes[i], (i,), (logp,)) for i, logp in zip(chosen, logprobs, strict=True)]


CLASSIFIED: dict[type, Callable] = {
    Answer: _classes_of,
    Choice: _classes_of,
    Logprobs: _class_logprobs,
    Sample: _class_samples,
}
