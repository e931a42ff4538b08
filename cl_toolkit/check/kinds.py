"""The laws of kinds of models: what is loaded is known, and what is trained, generated and scored is one thing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from cl_toolkit.check import codecs
from cl_toolkit.check.law import Broken, Laws, NotApplicable
from cl_toolkit.check.runs import Subject, global_states, moved
from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.errors import UserError
from cl_toolkit.models.kind import Codec, Kind, fingerprint
from cl_toolkit.models.sections import Prompt
from cl_toolkit.types import Example, Message, Stream, Task, answers_of

LAWS = Laws()
law = LAWS.law

ANSWERS = {"up": "yes", "the sun": "no", "red or blue?": "<b>no</b>", "q": "yes and no", "日?": "no"}
TEXTS = ("a\nb\n", "one two three", "é", "the end")
ARRAYS = (*((channels, 8, 8) for channels in range(1, 17)), (1, 28, 28), (3, 32, 32), *((n,) for n in range(1, 4097)))
"""Shapes of arrays, of which the first that a kind takes is taken: images, else a row of numbers."""
LOUD = 6.0
"""What drawn weights are multiplied by: as they are drawn, all answers are nearly alike."""


def conversations() -> list[Example]:
    """Short questions with closed answers."""
    choices = tuple(dict.fromkeys(ANSWERS.values()))
    return [
        Example(id=question, messages=(Message(role="user", content=question),), target=answer, choices=choices)
        for question, answer in ANSWERS.items()
    ]


def pictured(examples: list[Example]) -> list[Example]:
    """The same with one image of noise each, but the first, which has none, and the last, which has two."""
    draw = torch.Generator().manual_seed(0)
    counts = (0, *[1] * (len(examples) - 2), 2)
    noise = [
        tuple(torch.randint(256, (3, 24, 32), generator=draw, dtype=torch.uint8) for _ in range(n)) for n in counts
    ]
    return [replace(example, images=images) for example, images in zip(examples, noise, strict=True)]


def arrays(shape: tuple[int, ...], count: int = 5) -> list[Example]:
    """Noise of three classes."""
    draw, labels = torch.Generator().manual_seed(0), ("0", "1", "2")
    return [
        Example(id=f"array {i}", x=torch.randn(shape, generator=draw), y=i % 3, target=labels[i % 3], choices=labels)
        for i in range(count)
    ]


class KindSubject(Subject):
    """A kind of model, loaded with its settings, and examples that it takes."""

    def __init__(self, reference: str, thing: type[Kind], settings: Mapping[str, Any] | None = None):
        super().__init__(reference, thing, settings)
        self.kind: Kind = typed(thing, {**self.settings, "name": reference}, "model", "check")
        self.kind.check(None, False)
        self.prompt = typed(Prompt, base_layer()["prompt"], "prompt", "check")
        self.questions = self.asked()

    def asked(self) -> list[Example]:
        """Examples with a target."""
        if "image+text" in self.kind.inputs:
            return pictured(conversations())
        if "conversations" in self.kind.inputs:
            return conversations()
        if "arrays" in self.kind.inputs:
            return self.taken(arrays(next(filter(self.takes, ARRAYS), ARRAYS[0])))
        return []

    @cached_property
    def documents(self) -> list[Example]:
        """Texts, where it reads any."""
        texts = TEXTS if "documents" in self.kind.inputs else ()
        return [Example(id=f"text {i}", text=text) for i, text in enumerate(texts)]

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether the kind takes such arrays."""
        try:
            self.taken(arrays(shape, 1))
        except UserError:
            return False
        return True

    def taken(self, examples: list[Example]) -> list[Example]:
        """The examples; raises UserError where the kind does not take them."""
        self.kind.check_stream(Stream.of("check", [Task(name="check", train=tuple(examples))]), False)
        return examples

    @property
    def classes(self) -> tuple[str, ...]:
        """All allowed answers."""
        return answers_of([Task(name="check", train=tuple(self.questions))])

    @property
    def is_drawn(self) -> bool:
        """Whether the start model is drawn from a seed, rather than read from somewhere."""
        return self.kind.identity() == Kind.identity(self.kind)

    @cached_property
    def codec(self) -> Codec:
        return self.kind.codec(self.prompt, self.classes)

    @cached_property
    def model(self) -> nn.Module:
        """The start model; one that is drawn is made to have opinions."""
        model = self.load(0)
        if self.is_drawn:
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(LOUD if weight.dim() > 1 else 1.0)
        return model.eval()

    def load(self, seed: int) -> nn.Module:
        return self.kind.load(seed, False, self.classes)

    def needs(self, *given: str) -> None:
        """Raise NotApplicable where the kind does not give all of that."""
        if lacking := set(given) - self.kind.gives:
            raise NotApplicable(f"it does not give {', '.join(sorted(lacking))}")


@law(1, "the seed decides the start", "two runs of one seed begin with one model, and no part moves another's draws")
def start(subject: KindSubject) -> str:
    before = global_states()
    first, again, other = (fingerprint(subject.load(seed)) for seed in (0, 0, 1))
    if drawn := moved(before):
        raise Broken(f"loading moves the global generator of {drawn[0]}; use torch.random.fork_rng")
    if first != again:
        raise Broken("loaded twice with one seed, it has other weights")
    if subject.is_drawn and first == other:
        raise Broken("another seed gives the same weights")
    return f"the same weights twice; {'others' if first != other else 'the same'} with another seed"


@law(2, "the skeleton is the model without weights", "what is refused before loading is read off it")
def skeleton(subject: KindSubject) -> str:
    bare, model = subject.kind.skeleton(subject.classes), subject.load(0)
    if any(p.device.type != "meta" for p in bare.parameters()):
        raise Broken("the skeleton has weights")
    mine, theirs = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (bare, model))
    if mine != theirs:
        differ = sorted(set(mine.items()) ^ set(theirs.items()))[0]
        raise Broken(f"the skeleton and the model differ in {differ[0]} {differ[1]}")
    return f"{len(mine)} weights of the same shapes, none in memory"


@law(3, "its identity holds still", "a result is known by the model that it began with")
def identity(subject: KindSubject) -> str:
    first = subject.kind.identity()
    same = typed(type(subject.kind), dataclasses.asdict(subject.kind), "model", "check")
    if first != subject.kind.identity() or first != same.identity():
        raise Broken("asked twice, it is known by something else")
    if json.loads(json.dumps(first)) != first:
        raise Broken(f"{first} is not the same after JSON")
    return ", ".join(f"{key}: {value}" for key, value in first.items())


@law(4, "what is written is what was said", "what is trained, generated and scored is one text")
def one_text(subject: KindSubject) -> str:
    subject.needs("generates")
    return codecs.says_what_it_writes(subject.codec, subject.questions[0])


@law(5, "what is trained is what is scored", "a score of something else says nothing about the training")
def one_target(subject: KindSubject) -> str:
    subject.needs("outputs")
    return codecs.trains_what_it_asks(subject.codec, subject.model, [*subject.questions, *subject.documents])


@law(6, "a prompt has no target", "a model that can read its answer learns nothing")
def prompts(subject: KindSubject) -> str:
    return codecs.hides_targets(subject.codec, subject.questions)


@law(7, "how rows are padded and cut changes no loss", "the number of devices must not become a setting of the method")
def axes(subject: KindSubject) -> str:
    subject.needs("outputs")
    seen = codecs.loses_alike_when_cut(subject.codec, subject.model, subject.questions)
    if subject.documents:
        codecs.loses_alike_when_cut(subject.codec, subject.model, subject.documents)
    return seen


@law(8, "a choice is the likeliest answer", "choices and training must agree on what an answer is")
def choice(subject: KindSubject) -> str:
    subject.needs("outputs")
    return codecs.chooses_the_likeliest(subject.codec, subject.model, subject.questions)


@law(9, "a reply depends on its question alone", "scores must not move with the batch size of the evaluation")
def neighbours(subject: KindSubject) -> str:
    subject.needs("outputs")
    return codecs.answers_alone(subject.codec, subject.model, [*subject.questions, *subject.documents])


@law(10, "it replies to all that can be asked", "a probe relies on what a kind says that it gives")
def replies(subject: KindSubject) -> str:
    subject.needs("outputs")
    # as it was drawn, when nothing is sure, so that seeds can be told apart
    seen = codecs.replies(subject.codec, subject.load(0).eval(), subject.questions)
    if "hidden" in subject.kind.gives:
        batch = subject.codec.prompts(subject.questions)
        with torch.no_grad():
            hidden = hidden_of(subject.model, batch.inputs)
        if hidden is None or hidden.shape[0] != len(subject.questions):
            raise Broken("it says that it gives `hidden`, and its forward has neither features nor hidden_states")
    return seen


def hidden_of(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Features (B, D) of a net, or the last hidden state (B, T, D)."""
    features = getattr(model(**inputs), "features", None)
    if features is not None:
        return features
    states = getattr(model(**inputs, output_hidden_states=True), "hidden_states", None)
    return states[-1] if states else None


@law(11, "asking leaves no trace", "a measurement that changes the model measures itself")
def traceless(subject: KindSubject) -> str:
    subject.needs("outputs")
    model = subject.load(0).train()
    weights, before = fingerprint(model), global_states()
    modes = [module.training for module in model.modules()]
    codecs.ask(subject.codec, model, codecs.requests_of(subject.questions))
    if fingerprint(model) != weights:
        raise Broken("after some questions it has other weights")
    if [module.training for module in model.modules()] != modes:
        raise Broken("after some questions it is in another mode: train or eval")
    if any(p.grad is not None for p in model.parameters()):
        raise Broken("after some questions it has gradients")
    if drawn := moved(before):
        raise Broken(f"answering moves the global generator of {drawn[0]}")
    return "weights, mode and generators are as they were"
