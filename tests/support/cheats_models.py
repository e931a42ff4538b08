"""Kinds of models that blunder, each in one way. The comment names the law that must catch it."""

import itertools
from dataclasses import dataclass, replace

import torch

from cl_toolkit.models.arrays import MLP, ArrayCodec
from cl_toolkit.models.requests import Choice, Sample
from cl_toolkit.models.text import TextCodec
from cl_toolkit.models.tiny import TinyLM, byte_tokenizer
from cl_toolkit.types import IGNORE

COUNTER = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Small(TinyLM):
    """An honest kind: the built-in one, smaller."""

    hidden_size: int = 16
    intermediate_size: int = 32
    num_hidden_layers: int = 1
    num_attention_heads: int = 2

    def codec(self, prompt, classes=()):
        return self.codec_class()(byte_tokenizer(), prompt, positions=self.max_position_embeddings)

    def codec_class(self):
        return TextCodec


def with_codec(cls):
    """The kind whose codec is of that class."""
    return type(cls.__name__.removesuffix("Codec"), (Small,), {"codec_class": lambda self: cls})


class IgnoresTheSeed(Small):  # 1
    def load(self, seed, frozen=False, classes=()):
        return super().load(0)


class MovesEverybodysGenerator(Small):  # 1
    def load(self, seed, frozen=False, classes=()):
        torch.manual_seed(seed)
        return super().load(seed)


class HasAnotherSkeleton(Small):  # 2
    def skeleton(self, classes=()):
        return Small(num_hidden_layers=2).skeleton()


class LoadsItsSkeleton(Small):  # 2
    def skeleton(self, classes=()):
        return self.load(0)


class IsKnownByTheHour(Small):  # 3
    def identity(self):
        return {"loaded": str(next(COUNTER))}


@with_codec
class SwallowsBlanks(TextCodec):  # 4
    def said(self, ids):
        return super().said(ids).strip()


@with_codec
class ReadsOn(TextCodec):  # 4
    def decode(self, ids):
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


@with_codec
class ForgetsTheEnd(TextCodec):  # 5
    def batch(self, examples, answers=None):
        found = super().batch(examples, answers)
        return replace(found, labels=torch.where(found.labels == self.eos, IGNORE, found.labels))


@with_codec
class ShowsTheTarget(TextCodec):  # 6
    def prompts(self, examples):
        found = super().batch(examples)
        return replace(found, labels=torch.full_like(found.labels, IGNORE))


@with_codec
class NamesHalfOfTheAxes(TextCodec):  # 7
    def batch(self, examples, answers=None):
        return replace(super().batch(examples, answers), along_tokens=frozenset({"input_ids"}))


@with_codec
class ChoosesTheFirst(TextCodec):  # 8
    def reply(self, model, requests, rows):
        found = super().reply(model, requests, rows)
        return [
            replace(r, text=q.allowed[0]) if isinstance(q, Choice) else r for q, r in zip(requests, found, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class LooksAtItsNeighbours(MLP):  # 9
    def codec(self, prompt=None, classes=()):
        return Centred()


class Centred(ArrayCodec):
    """Takes the mean of whatever is in the batch off."""

    def prompts(self, examples):
        found = super().prompts(examples)
        x = found.inputs["x"]
        return replace(found, inputs={"x": x - x.mean(0)})


@with_codec
class SamplesOnce(TextCodec):  # 10
    def reply(self, model, requests, rows):
        same = [replace(request, seed=0) if isinstance(request, Sample) else request for request in requests]
        return super().reply(model, same, rows)


@with_codec
class WritesTooMuch(TextCodec):  # 10
    def reply(self, model, requests, rows):
        return [replace(r, tokens=r.tokens * 3) for r in super().reply(model, requests, rows)]


@with_codec
class LeavesItInEval(TextCodec):  # 11
    def reply(self, model, requests, rows):
        return super().reply(model.eval(), requests, rows)


KINDS = {
    "IgnoresTheSeed": 1,
    "MovesEverybodysGenerator": 1,
    "HasAnotherSkeleton": 2,
    "LoadsItsSkeleton": 2,
    "IsKnownByTheHour": 3,
    "SwallowsBlanks": 4,
    "ReadsOn": 4,
    "ForgetsTheEnd": 5,
    "ShowsTheTarget": 6,
    "NamesHalfOfTheAxes": 7,
    "LooksAtItsNeighbours": 9,
    "ChoosesTheFirst": 8,
    "SamplesOnce": 10,
    "WritesTooMuch": 10,
    "LeavesItInEval": 11,
}
