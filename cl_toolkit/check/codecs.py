"""What a codec must keep, whatever the kind of its model. Each function says what was seen, or raises `Broken`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cl_toolkit.check.law import Broken
from cl_toolkit.errors import quoted
from cl_toolkit.measure.answers import Answers
from cl_toolkit.models.kind import Codec
from cl_toolkit.models.requests import Answer, Choice, Logprobs, Reply, Request, Sample
from cl_toolkit.strategies.objectives.sft import SFT
from cl_toolkit.types import IGNORE, Batch, Example

TEXTS = (
    "yes",
    " 42 ",
    "",
    "two\nlines\n",
    "a </s> b",
    "<|im_end|>",
    "[/INST] <s>",
    "<think>so</think> it is",
    "日本",
    "½ 🎈",
)
"""Answers that a way of writing may trip over."""
ROOM = 6
"""Tokens of an answer that is asked for."""


def close(a: float, b: float) -> bool:
    """Equal but for the rounding of fp32."""
    return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4)


def says_what_it_writes(codec: Any, example: Example) -> str:
    """An answer reads back as it was written, ends with a mark, and nothing is read behind that."""
    for text in TEXTS:
        ids = codec.answer(example, text)
        if codec.said(ids) != text:
            raise Broken(f"the answer {text!r} reads back as {codec.said(ids)!r}")
        if not codec.ended(ids) or sum(token in codec.stops for token in ids) != 1:
            raise Broken(f"the answer {text!r} does not end with one mark that ends it: {ids}")
        if codec.said([*ids, *ids]) != text:
            raise Broken(f"behind the end of {text!r} more is read: {codec.said([*ids, *ids])!r}")
    return f"{len(TEXTS)} answers read back as they were written, each with one end"


def targets_of(batch: Batch, row: int) -> tuple[int, ...]:
    """What is trained in a row: token ids, or the index of a class."""
    return tuple(label for label in batch.labels[row].reshape(-1).tolist() if label != IGNORE)


def trains_what_it_asks(codec: Codec, model: nn.Module, examples: Sequence[Example]) -> str:
    """The targets of a batch are what the likelihood of a target is taken of."""
    batch, count = codec.batch(examples), 0
    for i, (example, reply) in enumerate(zip(examples, ask(codec, model, map(Logprobs, examples)), strict=True)):
        trained = targets_of(batch, i)
        if trained != reply.tokens:
            raise Broken(f"to {example.target!r} {list(trained)} is trained, and {list(reply.tokens)} is scored")
        count += len(trained)
    return f"{count} targets in {len(examples)} examples are trained as they are scored"


def hides_targets(codec: Codec, examples: Sequence[Example]) -> str:
    """A prompt has no target, and does not change with it; an example that is not learned from has none."""
    prompts = codec.prompts(examples)
    if (prompts.labels != IGNORE).any():
        raise Broken("prompts have labels")
    swapped = [
        replace(example, target=other.target, y=other.y, text=example.text)
        for example, other in zip(examples, [*examples[1:], examples[0]], strict=True)
    ]
    if not same_tensors(prompts.inputs, codec.prompts(swapped).inputs):
        raise Broken("a prompt changes with its target, which a model could read off it")
    aside = codec.batch([replace(example, source="aside") for example in examples])
    if (aside.labels != IGNORE).any():
        raise Broken("an example that is only looked at (source `aside`) has a target")
    if aside.targets is None or not torch.equal(aside.targets, codec.batch(examples).labels):
        raise Broken("`targets` of an example that is only looked at (source `aside`) is not what it answers")
    return f"{len(examples)} prompts are the same with other targets"


def same_tensors(mine: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def summed_loss(model: nn.Module, batch: Batch) -> float:
    """The cross-entropy of a batch, summed over its targets."""
    with torch.no_grad():
        return float(SFT().forward(model, replace(batch, total={"tokens": 1.0})).loss)


def loses_alike_when_cut(codec: Codec, model: nn.Module, examples: Sequence[Example]) -> str:
    """The loss of a batch is that of its rows, cut out of it or encoded alone; and that is the likelihood of its targets."""
    batch = codec.batch(examples)
    whole = summed_loss(model, batch)
    rows = range(len(examples))
    try:
        cut = sum(summed_loss(model, batch.rows([i])) for i in rows)
    except (RuntimeError, ValueError, IndexError) as error:
        raise Broken(f"a batch cannot be cut into rows ({error}); are its axes named in along_tokens?") from error
    alone = sum(summed_loss(model, codec.batch([example])) for example in examples)
    likely = -sum(sum(reply.logprobs) for reply in ask(codec, model, map(Logprobs, examples)))
    for what, other in (("of its rows cut out of it", cut), ("of its rows encoded alone", alone)):
        if not close(whole, other):
            raise Broken(f"the loss of {len(examples)} examples is {whole:.6g}, {what} {other:.6g}")
    if not close(whole, likely):
        raise Broken(f"the loss is {whole:.6g}, and the likelihood of the targets comes to {likely:.6g}")
    width = {name: tuple(batch.inputs[name].shape) for name in batch.inputs}
    return f"{whole:.4g} nats whole, in rows, alone, and as a likelihood ({width})"


def chooses_the_likeliest(codec: Codec, model: nn.Module, examples: Sequence[Example]) -> str:
    """What is chosen is the answer with the largest likelihood as a target."""
    chosen = ask(codec, model, [Choice(example, example.choices) for example in examples])
    for example, reply in zip(examples, chosen, strict=True):
        choices = example.choices or ()
        targets = [Logprobs(replace(example, id=f"{example.id}/{c}", target=c, y=None)) for c in choices]
        likely = [sum(reply.logprobs) for reply in ask(codec, model, targets)]
        if reply.text not in choices:
            raise Broken(f"of {choices} it chose {reply.text!r}")
        if likely[choices.index(reply.text)] < max(likely) - 1e-4:
            raise Broken(
                f"it chose {reply.text!r}, and log-probabilities are {dict(zip(choices, likely, strict=True))}"
            )
        if not close(reply.chance, 1 / len(choices)):
            raise Broken(f"among {len(choices)} answers its chance is {reply.chance:g}")
    return f"{len(examples)} choices: {', '.join(sorted({reply.text for reply in chosen}))}"


def answers_alone(codec: Codec, model: nn.Module, examples: Sequence[Example]) -> str:
    """A reply depends on neither batch size nor neighbours nor the order in which is asked."""
    asked = requests_of(examples)
    first = Answers(codec, len(examples))(model, asked)
    for size in (1, 3):
        parts = [requests_of(examples[start : start + size]) for start in range(0, len(examples), size)]
        apart = [reply for part in parts for reply in Answers(codec, size)(model, part)]
        same_replies(asked, first, apart, f"in batches of {size}")
    backwards = Answers(codec, 2)(model, asked[::-1])[::-1]
    same_replies(asked, first, backwards, "asked backwards")
    return f"{len(asked)} replies, the same in batches of 1, 2, 3 and {len(examples)} and asked backwards"


def requests_of(examples: Sequence[Example]) -> list[Request]:
    """Everything that can be asked about some examples."""
    asked: list[Request] = []
    for example in examples:
        asked += [Logprobs(example)]
        if example.choices:
            asked += [Answer(example, ROOM), Choice(example, example.choices), Sample(example, ROOM, 1)]
    return asked


def same_replies(asked: Sequence[Request], mine: Sequence[Reply], other: Sequence[Reply], how: str) -> None:
    for request, one, two in zip(asked, mine, other, strict=True):
        name = type(request).__name__
        if (one.text, one.tokens, one.cut) != (two.text, two.tokens, two.cut):
            raise Broken(f"{name} of {request.example.id} is {quoted(one.text)}, and {how} {quoted(two.text)}")
        if not all(map(close, one.logprobs, two.logprobs)):
            raise Broken(
                f"{name} of {request.example.id} has log-probabilities {one.logprobs}, and {how} {two.logprobs}"
            )


def replies(codec: Codec, model: nn.Module, examples: Sequence[Example]) -> str:
    """Answers are as long as asked for, samples follow their seed, likelihoods are those of probabilities."""
    greedy = ask(codec, model, [Answer(example, ROOM) for example in examples])
    if long := next((reply for reply in greedy if len(reply.tokens) > ROOM), None):
        raise Broken(f"asked for at most {ROOM} tokens it gave {len(long.tokens)}")
    seeds = [ask(codec, model, [Sample(example, ROOM, seed) for example in examples]) for seed in (1, 1, *range(2, 10))]
    said = [[reply.tokens for reply in drawn] for drawn in seeds]
    if said[0] != said[1]:
        raise Broken("with the same seed it samples another answer")
    unsure = any(math.exp(sum(reply.logprobs)) < 0.5 for reply in seeds[0])
    if unsure and all(tokens == said[0] for tokens in said):
        raise Broken("with eight other seeds it samples the same answers")
    likely = ask(codec, model, [Logprobs(e, r.tokens) for e, r in zip(examples, seeds[0], strict=True)])
    for drawn, reply in zip(seeds[0], likely, strict=True):
        if len(drawn.logprobs) != len(drawn.tokens) or not all(map(close, drawn.logprobs, reply.logprobs)):
            raise Broken(f"a sample has log-probabilities {drawn.logprobs}; asked for, they are {reply.logprobs}")
        if any(not math.isfinite(value) or value > 1e-5 for value in reply.logprobs):
            raise Broken(f"log-probabilities are {reply.logprobs}")
    return f"{len(greedy)} answers, {len(seeds) * len(examples)} samples, each with the likelihood that it has"


def ask(codec: Codec, model: nn.Module, requests: Any) -> list[Reply]:
    """The replies of one pass."""
    return Answers(codec, 4)(model, list(requests))
