"""Answers about plain text as it stands, with no conversation around it: what EleutherAI's harness and its kin ask."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from cl_toolkit.engine.access import evaluating, unwrapped
from cl_toolkit.models.generate import in_parts
from cl_toolkit.models.likelihoods import target_logprobs
from cl_toolkit.models.requests import Completion, Continuation, Reply
from cl_toolkit.types import IGNORE

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.models.text import TextCodec

Pair = tuple[list[int], list[int]]


def plain_ids(codec: TextCodec, text: str) -> list[int]:
    """Tokens as the tokenizer makes them by itself, with the mark that it begins with."""
    ids = codec.tokenizer(text)["input_ids"] if text else []
    return ids[:-1] if ids and ids[-1] == codec.eos and ids[-1:] == codec.tokenizer("")["input_ids"][-1:] else ids


def pair(codec: TextCodec, context: str, text: str) -> Pair:
    """(tokens before, tokens of the text): as one text is cut into tokens, blanks at the end of the context belong to the text.
    Nothing before stands as the mark that begins a text, or the one that ends it."""
    stripped = context.rstrip()
    context, text = stripped, context[len(stripped) :] + text
    before = plain_ids(codec, context)
    whole = plain_ids(codec, context + text)
    start = codec.eos if codec.bos is None else codec.bos
    if not context:
        return [start], whole[1:] if whole[:1] == [start] else whole
    return before, whole[len(before) :]


def windows(codec: TextCodec, context: str, text: str) -> list[Pair]:
    """The pair in pieces that the model has positions for: of a long context its end stays; a long text is read in windows,
    each after the last token of the one before."""
    before, tokens = pair(codec, context, text)
    most = codec.positions
    if most is None or len(before) + len(tokens) <= most + 1:
        return [(before, tokens)]
    if len(tokens) <= most:
        return [(before[-(most + 1 - len(tokens)) :], tokens)]
    found, last = [], before[-1:]
    for i in range(0, len(tokens), most):
        found.append((last, tokens[i : i + most]))
        last = tokens[i + most - 1 : i + most]
    return found


def continued(codec: TextCodec, model: nn.Module, requests: Sequence[Continuation], rows: int) -> list[Reply]:
    """log p of each text's tokens after its context, and whether all of them are the likeliest."""
    module = unwrapped(model)
    device = next(module.parameters()).device
    asked = [windows(codec, request.context, request.text) for request in requests]

    def scored(some: Sequence[Pair]) -> list[list[tuple[float, bool]]]:
        batch = codec.padded([([*before, *tokens], [IGNORE] * len(before) + [*tokens]) for before, tokens in some])
        targets = batch.labels[:, 1:].to(device)
        with evaluating(module):
            logits = module(**batch.to(device).inputs).logits[:, :-1]
        likely = target_logprobs(logits, targets).tolist()
        best = (logits.argmax(-1) == targets)[targets != IGNORE].tolist()
        found = iter(zip(likely, best, strict=True))
        return [list(islice(found, len(tokens))) for _, tokens in some]

    pieces = [piece for of_request in asked for piece in of_request]
    found = iter(in_parts(pieces, lambda piece: len(piece[0]) + len(piece[1]), rows, scored))
    replies = []
    for of_request in asked:
        each = [token for _ in of_request for token in next(found)]
        replies.append(Reply(logprobs=tuple(p for p, _ in each), likeliest=all(best for _, best in each)))
    return replies


def completed(codec: TextCodec, model: nn.Module, requests: Sequence[Completion], rows: int) -> list[Reply]:
    """What the model writes after each context, up to the first of its stops."""
    limit = requests[0].max_new_tokens
    room = None if codec.positions is None else max(1, codec.positions - limit)
    prompts = [plain_ids(codec, r.context) or [codec.eos if codec.bos is None else codec.bos] for r in requests]
    prompts = [ids if room is None else ids[-room:] for ids in prompts]
    answers = codec.writer(model, codec, prompts, limit, rows)
    replies = []
    for request, answer in zip(requests, answers, strict=True):
        text = codec.decode([token for token in answer if token not in codec.stops])
        ends = [place for stop in request.stops if stop and (place := text.find(stop)) >= 0]
        replies.append(Reply(text[: min(ends, default=None)], tuple(answer)))
    return replies
