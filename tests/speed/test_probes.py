"""What watching costs: five probes at one moment against the dearest of them."""

import time
from dataclasses import replace
from statistics import median

import pytest
from pieces import ask, byte_codec, tiny_model

from cl_toolkit.measure.answers import Answers
from cl_toolkit.measure.exam import Exam
from cl_toolkit.measure.matrix import Matrix
from cl_toolkit.measure.probe import Moment, look
from cl_toolkit.measure.probes.curves import ForgettingCurves
from cl_toolkit.measure.probes.drift import Drift
from cl_toolkit.types import Task

ROUNDS = 7
BOUND = 1.3


@pytest.mark.speed
def test_five_probes_cost_little_more_than_the_dearest(measured):
    examples = tuple(ask(f"what comes after {i}?", str(i + 1), str(i)) for i in range(96))
    exam = Exam(Task(name="t", train=(), test=examples), examples, 16)
    model, answers = tiny_model(), Answers(byte_codec(), 32)
    curve = ForgettingCurves.Config(schedule="linear", every=1, examples=48, loss=False)
    five = {
        "matrix": Matrix(),
        "curves": ForgettingCurves(curve),
        "half": ForgettingCurves(replace(curve, examples=24)),
        "drift": Drift(Drift.Config(examples=24, max_new_tokens=8)),
        "more": Drift(Drift.Config(examples=24, max_new_tokens=8, seed=1)),
    }
    settings = {
        "task": "t",
        "row": 1,
        "step": 3,
        "examples_seen": 12,
        "tokens_seen": 30,
        "exams": {"t": exam},
        "scored": ("t",),
    }
    look(answers, model, five, Moment(kind="start", **settings))
    end = Moment(kind="task_end", learned="t", **settings)

    def seconds(probes):
        started = time.perf_counter()
        look(answers, model, probes, end)
        return time.perf_counter() - started

    times = {name: [] for name in (*five, "all")}
    for _ in range(ROUNDS):
        for name, probe in five.items():
            times[name].append(seconds({name: probe}))
        times["all"].append(seconds(five))
    typical = {name: median(values) for name, values in times.items()}
    dearest = max(typical[name] for name in five)
    measured("five probes at one moment", typical["all"] / dearest, "the dearest of them", BOUND, ROUNDS)
