"""Strategies that cheat or blunder, each in one way. The comment names the law that must catch it."""

import gc
import inspect
import random
from dataclasses import dataclass

import torch

from cl_toolkit.strategy import Strategy, Tags
from cl_toolkit.types import Batches, Stream


def stream_in_training():
    """The stream, dug out of the callers' variables."""
    for frame in inspect.stack():
        run = frame.frame.f_locals.get("self")
        if isinstance(getattr(run, "stream", None), Stream):
            return run.stream
    return next(o for o in gc.get_objects() if isinstance(o, Stream))


class PeeksAtTheNextTask(Strategy):  # 4
    def batches(self, model, task, batches):
        stream = stream_in_training()
        if task.index + 1 < len(stream.tasks):
            self.stolen = stream.tasks[task.index + 1].train[:2]
        return batches


class PeeksAtTheTestSplit(Strategy):  # 4
    def after_task(self, model, task):
        self.stolen = stream_in_training().tasks[task.index].test[:2]
        return model


class CallsBackward(Strategy):  # 11
    def loss(self, model, part, out):
        (0.1 * out.loss).backward(retain_graph=True)
        return {}


class ForgetsItsStateOnResume(Strategy):  # 6
    tasks_done = 0

    def penalty(self, weights):
        if not self.tasks_done:
            return {}
        return {"decay": 0.01 * self.tasks_done * sum((w**2).sum() for w in weights.values())}

    def after_task(self, model, task):
        self.tasks_done += 1
        return model


class AddsAHeadBehindTheBack(Strategy):  # 6
    def before_task(self, model, task):
        if not hasattr(model, "bonus"):
            model.bonus = torch.nn.Linear(2, 1, bias=False)
            torch.nn.init.ones_(model.bonus.weight)
        return model

    def loss(self, model, part, out):
        return {"bonus": (model.bonus.weight**2).sum() * part.counts()["sequences"] / part.total["sequences"]}


class UsesTheGlobalGenerator(Strategy):  # 7
    def batches(self, model, task, batches):
        return Batches(len(batches), lambda i: [batches[i][j] for j in torch.randperm(len(batches[i]))])


class UsesPythonsGlobalGenerator(Strategy):  # 7
    def after_task(self, model, task):
        random.random()
        return model


class MovesFrozenWeights(Strategy):  # 12
    def before_step(self, model, step):
        with torch.no_grad():
            for weight in model.parameters():
                if not weight.requires_grad:
                    weight.mul_(1.0001)


class DrawsWhenOff(Strategy):  # 2
    tags = Tags(off={"weight": 0.0})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        weight: float = 1.0

    def batches(self, model, task, batches):
        torch.rand(1, generator=task.generator("Neighbour"))
        return batches


class MultipliesByZero(Strategy):  # 2
    tags = Tags(off={"weight": 0.0})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        weight: float = 1.0

    def penalty(self, weights):
        return {"decay": self.config.weight * sum((w**2).sum() for w in weights.values())}


class KeepsAnObject(Strategy):  # 10
    def state(self):
        return {"seen": {1, 2}}


class PullsAtTheBoundary(Strategy):  # 3
    def penalty(self, weights):
        return {"decay": 0.01 * sum((w**2).sum() for w in weights.values())}


class TakesTheMeanOfItsPart(Strategy):  # 9
    tags = Tags(needs=frozenset({"logits"}))

    def loss(self, model, part, out):
        return {"small": 0.1 * (out.logits**2).mean()}


class TakesARowForAnExample(Strategy):  # 13
    def loss(self, model, part, out):
        return {"rows": out.loss * 0 + 0.01 * len(part.labels) / max(part.total["sequences"], 1)}


class ChangesTheFirstTask(Strategy):  # 1
    def batches(self, model, task, batches):
        return Batches(len(batches), lambda i: batches[i][:-1])


class WatchesTheFirstTask(Strategy):  # 14
    tags = Tags(forks=True)
    kept = ("steps", "strength")
    steps = strength = 0

    def penalty(self, weights):
        return {"decay": 0.01 * self.strength * sum((w**2).sum() for w in weights.values())} if self.strength else {}

    def before_step(self, model, step):
        self.steps += 1

    def after_task(self, model, task):
        self.strength = self.steps
        return model


CAUGHT_BY = {
    "PeeksAtTheNextTask": 4,
    "PeeksAtTheTestSplit": 4,
    "CallsBackward": 11,
    "ForgetsItsStateOnResume": 6,
    "AddsAHeadBehindTheBack": 6,
    "UsesTheGlobalGenerator": 7,
    "UsesPythonsGlobalGenerator": 7,
    "MovesFrozenWeights": 12,
    "DrawsWhenOff": 2,
    "MultipliesByZero": 2,
    "KeepsAnObject": 10,
    "PullsAtTheBoundary": 3,
    "TakesTheMeanOfItsPart": 9,
    "TakesARowForAnExample": 13,
    "ChangesTheFirstTask": 1,
    "WatchesTheFirstTask": 14,
}
