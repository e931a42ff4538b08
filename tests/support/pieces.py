"""Single parts of a run, small, for tests that look at one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.data.spread import spread
from cl_toolkit.engine.sections import Train
from cl_toolkit.engine.torch_engine import TorchEngine
from cl_toolkit.learn import learn
from cl_toolkit.measure.answers import Answers
from cl_toolkit.measure.exam import Exam, Scored
from cl_toolkit.models import tiny
from cl_toolkit.models.arrays import MLP, ArrayCodec
from cl_toolkit.models.sections import Prompt
from cl_toolkit.models.text import TextCodec
from cl_toolkit.strategies.objectives.sft import SFT
from cl_toolkit.strategies.objectives.supcon import SupCon
from cl_toolkit.strategy import Strategy, compose
from cl_toolkit.task_view import TaskView
from cl_toolkit.types import Example, Message, Task


def tiny_model(seed: int = 0, hidden_size: int = 16):
    """A one-layer byte model from random weights that are large enough for answers to differ."""
    settings = tiny.TinyLM(
        hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_hidden_layers=1, num_attention_heads=2
    )
    model = tiny.build_tiny(settings, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
    return model.eval()


def byte_codec(**prompt: Any) -> TextCodec:
    """The byte tokenizer with base.yaml's prompt settings, changed by keyword."""
    return TextCodec(tiny.byte_tokenizer(), typed(Prompt, {**base_layer()["prompt"], **prompt}, "prompt", "test"))


def ask(question: str, target: str = "", identity: str | None = None, **fields: Any) -> Example:
    """An example with one user turn."""
    return Example(id=identity or question, messages=(Message(role="user", content=question),), target=target, **fields)


def train_settings(**changes: Any) -> Train:
    """base.yaml's training settings, changed by keyword."""
    return replace(typed(Train, base_layer()["train"], "train", "test"), **changes)


def task_view(examples, objective=None, **changes: Any) -> TaskView:
    """A task as it is trained."""
    settings = {"name": "task", "index": 0, "codec": byte_codec(), "batch_size": 4, **changes}
    return TaskView(examples=examples, objective=objective or SFT(), **settings)


def points(n: int = 12, classes: int = 3, size: tuple[int, ...] = (4,)) -> list[Example]:
    """Arrays around three times their class."""
    draw = torch.Generator().manual_seed(0)
    return [
        Example(
            id=str(i), x=torch.randn(size, generator=draw) + 3 * (i % classes), y=i % classes, target=str(i % classes)
        )
        for i in range(n)
    ]


def array_view(examples, objective=None, **changes: Any) -> TaskView:
    """A task of arrays as it is trained."""
    return task_view(examples, objective, codec=ArrayCodec(), **changes)


def contrastive(**settings: Any) -> SupCon:
    """The objective supcon with small heads."""
    return SupCon(SupCon.Config(projection_size=8, hidden_size=16, **settings))


def small_encoder(supcon: SupCon, seed: int = 0):
    """Its encoder on a small perceptron."""
    return supcon.equip(MLP(input_size=4, hidden_size=8, num_classes=3).load(seed), seed)


def train(model, view: TaskView, strategy=None, watch=lambda session: None, **settings: Any):
    """Learn one task with the torch engine on CPU."""
    engine = TorchEngine(train_settings(**settings), torch.device("cpu"))
    return learn(model, view, view.objective, strategy or compose(), engine, watch)


class GradientSpy(Strategy):
    """Notes the step's gradient, that of other examples, and the step's after the inner strategy's edit, as vectors."""

    def __init__(self, inner: Strategy, examples: Sequence[Example]):
        super().__init__()
        self.inner, self.examples, self.seen = inner, examples, []

    def before_task(self, model, task):
        return self.inner.before_task(model, task)

    def before_step(self, model, step):
        def flat(grads):
            return torch.cat([grads[name].flatten() for name in step.grads]).double()

        g, r = flat(step.grads), flat(step.gradient_of(self.examples))
        self.inner.before_step(model, step)
        self.seen.append((g, r, flat(step.grads)))


class Back(Strategy):
    """Takes the weights of before the task."""

    def before_task(self, model, task):
        self.before = weights_of(model)
        return model

    def after_task(self, model, task):
        model.load_state_dict(self.before)
        return model


def weights_of(model) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit equality of two sets of weights."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def configured(cls: type, **settings: Any) -> Any:
    """Settings of a strategy or an objective as they are read from a config: types and ranges are checked."""
    return typed(cls.Config, settings, cls.__name__, "test")


def token_logprobs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log p of each label given what stands before it, 0 where there is none: logits (B, T, V), labels (B, T) -> (B, T-1)."""
    logp = logits[:, :-1].float().log_softmax(-1).gather(-1, labels[:, 1:, None].clamp(min=0))[..., 0]
    return torch.where(labels[:, 1:] >= 0, logp, 0.0)


class Evaluator:
    """Scores tasks on one split by the one pass that answers. choices: what answers are chosen from instead of their own."""

    choices: tuple[str, ...] | None = None

    def __init__(self, codec, *, split: str = "test", batch_size: int, max_new_tokens: int, processes=None):
        self.split, self.max_new_tokens = split, max_new_tokens
        self.answers = Answers(codec, batch_size, processes)

    def exam(self, task: Task, limit: int | None = None) -> Exam:
        """The task as it is scored."""
        return Exam(task, tuple(spread(getattr(task, self.split), limit)), self.max_new_tokens)

    def __call__(self, model, tasks: Sequence[Task], limit: int | None = None) -> dict[str, list[Scored]]:
        """Per task the scored examples."""
        exams = [self.exam(task, limit) for task in sorted(tasks, key=lambda task: task.name)]
        replies = iter(self.answers(model, [request for exam in exams for request in exam.ask(self.choices)]))
        found = {exam.name: exam.read([next(replies) for _ in exam.examples]) for exam in exams}
        return {task.name: found[task.name] for task in tasks}


def score_of(task: Task, scored: Sequence[Scored]) -> float:
    """What a task's scores come to."""
    return Exam(task, (), 1).value(scored)
