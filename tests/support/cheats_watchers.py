"""Probes, trackers and engines that blunder, each in one way. The comment names the law that must catch it."""

import inspect
import itertools
import random
from statistics import stdev

import torch

from cl_toolkit.engine.torch_engine import TorchEngine, TorchSession
from cl_toolkit.measure.probe import Probe
from cl_toolkit.models.requests import Answer, Logprobs
from cl_toolkit.runs.events import Finished
from cl_toolkit.runs.tracker import Tracker

COUNTER = itertools.count()


class Lengths(Probe):
    """An honest probe: how long the answers are, and the longest of them so far."""

    longest = 0

    def due(self, moment):
        return moment.kind == "task_end"

    def ask(self, moment):
        return [Answer(e, 4) for exam in moment.exams.values() for e in exam.part(2).examples]

    def read(self, moment, replies):
        self.longest = max([self.longest, *(len(r.text) for r in replies)])
        return [{"step": moment.step, "trained": moment.task, "longest": self.longest}]

    def state(self):
        return {"longest": self.longest}

    def load_state(self, state):
        self.longest = state["longest"]


class Classes(Lengths):
    """An honest probe of a model of classes."""

    needs = frozenset({"classes"})

    def read(self, moment, replies):
        return [{"step": moment.step, "said": sorted({r.text for r in replies})}]


class TouchesTheModel(Lengths):  # 1
    def due(self, moment):
        model = next(f.frame.f_locals["model"] for f in inspect.stack() if "model" in f.frame.f_locals)
        with torch.no_grad():
            next(model.parameters()).mul_(1.001)
        return super().due(moment)


class AsksInWords(Lengths):  # 2
    def ask(self, moment):
        return ["how are you?"]


class AsksAboutATrainingExample(Lengths):  # 2
    def ask(self, moment):
        return [Logprobs(e) for exam in moment.exams.values() for e in exam.task.train[:2]]


class AsksWhatItLikes(Lengths):  # 2
    def ask(self, moment):
        return [Answer(e, 4) for exam in moment.exams.values() for e in random.sample(exam.examples, 2)]


class GivesATensor(Lengths):  # 3
    def read(self, moment, replies):
        return [{"longest": torch.tensor(1.0)}]


class GivesNoNumber(Lengths):  # 3
    def read(self, moment, replies):
        return [{"longest": float("nan")}]


class SaysNothing(Lengths):  # 3
    def read(self, moment, replies):
        return []


class CountsOn(Lengths):  # 4
    def read(self, moment, replies):
        return [{"step": moment.step, "nth": next(COUNTER)}]


class ForgetsOnResume(Lengths):  # 5
    looked = 0

    def read(self, moment, replies):
        self.looked += 1
        return [{"step": moment.step, "looked": self.looked}]


class NeedsTwo(Lengths):  # 6
    def ask(self, moment):
        return super().ask(moment)[:2]

    def read(self, moment, replies):
        return [{"step": moment.step, "spread": stdev(len(r.text) for r in replies)}]


PROBES = {
    "TouchesTheModel": 1,
    "AsksInWords": 2,
    "AsksAboutATrainingExample": 2,
    "AsksWhatItLikes": 2,
    "GivesATensor": 3,
    "GivesNoNumber": 3,
    "SaysNothing": 3,
    "CountsOn": 4,
    "ForgetsOnResume": 5,
    "NeedsTwo": 6,
}


class Keeps(Tracker):
    """An honest tracker: the last of each number."""

    def open(self, place):
        self.place, self.last = place, {}

    def log(self, numbers, step):
        self.last.update(numbers)

    def close(self):
        (self.place.folder / "last.txt").write_text("\n".join(f"{n} {v}" for n, v in self.last.items()))


class RollsDice(Keeps):  # 1
    def log(self, numbers, step):
        super().log({**numbers, "luck": random.random()}, step)


class RoundsOff(Keeps):  # 1
    def log(self, numbers, step):
        numbers.update({name: round(value) for name, value in numbers.items()})


class WaitsForTheEnd(Keeps):  # 2
    def __call__(self, event):
        if isinstance(event, Finished):
            super().__call__(event)


class NeedsAnEnd(Keeps):  # 3
    def close(self):
        super().close()
        (self.place.folder / "acc.txt").write_text(str(self.last["metric/acc"]))


class MakesItsFolderOnce(Keeps):  # 4
    def open(self, place):
        super().open(place)
        (place.folder / "kept").mkdir()


TRACKERS = {"RollsDice": 1, "RoundsOff": 1, "WaitsForTheEnd": 2, "NeedsAnEnd": 3, "MakesItsFolderOnce": 4}


class Session(TorchSession):
    """Plain torch."""


class TakesLongerSteps(Session):  # 1
    @property
    def learning_rate(self):
        return super().learning_rate

    def update(self):
        for group in self.optimizer.param_groups:
            group["lr"] *= 1.01
        super().update()


class LearnsFromTheLastPart(Session):  # 2
    def accumulate(self, loss):
        if self.last_part:
            loss.backward()


class DoesNotClip(Session):  # 3
    def update(self):
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self._weights.values(), 1e9)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()


class HidesWeights(Session):  # 4
    def weights(self):
        return dict(list(self._weights.items())[1:])


class LeavesItsHooks(Session):  # 5
    def close(self):
        self.module.register_forward_hook(lambda *_: None)
        super().close()


ENGINES = {
    "TakesLongerSteps": 1,
    "LearnsFromTheLastPart": 2,
    "DoesNotClip": 3,
    "HidesWeights": 4,
    "LeavesItsHooks": 5,
}


def engine_of(name):
    """An engine with that session."""

    class Engine(TorchEngine):
        def open(self, model, task, steps):
            return globals()[name](self, model, task, steps)

    return Engine
