"""Regimes: how the tasks of a stream become stages, in which they are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cl_toolkit.data.splits import Joined
from cl_toolkit.data.spread import spread
from cl_toolkit.errors import UserError, did_you_mean, quoted
from cl_toolkit.types import SEQUENTIAL, Regime, Stage, Stream, Task

REGIMES = {
    regime.name: regime
    for regime in (
        SEQUENTIAL,
        Regime(
            name="joint",
            does="sees all tasks at once",
            upper_bound=True,
            compared=("acc",),
            undefined="all tasks were learned at once",
        ),
        Regime(name="cumulative", does="learns each task together with all before it", compared=("bwt", "acc")),
        Regime(
            name="independent",
            does="trains each task alone from the start model",
            restarts=True,
            compared=("learning_accuracy",),
            undefined="each task had a model of its own",
        ),
        Regime(name="start", does="is the model before any training", trained=False),
    )
}


def regime_of(view: str | None) -> Regime:
    """The regime behind the config's `stream.view`."""
    return REGIMES[view] if view else SEQUENTIAL


def joint(stream: Stream) -> Stream:
    """All tasks at once from the start model, examples shuffled together: the usual upper bound. Each example is seen as
    often as in the sequential stream. Only the last row of the matrix is filled."""
    union = together(stream.tasks, "joint")
    stage = Stage(
        task=union,
        row=len(stream.tasks),
        made_of=tuple(task.name for task in stream.tasks),
        scored=tuple(range(len(stream.tasks))),
        tasks_at_once=len(stream.tasks),
    )
    return replace(stream, stages=(stage,), regime=REGIMES["joint"])


def cumulative(stream: Stream) -> Stream:
    """Each task together with all before it, going on from the model so far."""
    stages = []
    for i, stage in enumerate(stream.stages):
        seen = stream.tasks[: i + 1]
        union = replace(together(seen, stage.task.name), valid=stage.task.valid, test=stage.task.test)
        union = replace(union, scorer=stage.task.scorer)
        stages.append(replace(stage, task=union, made_of=tuple(task.name for task in seen)))
    return replace(stream, stages=tuple(stages), regime=REGIMES["cumulative"])


def together(tasks: Sequence[Task], name: str) -> Task:
    """The training examples of several tasks as one task, which is learned in one way."""
    for task in tasks[1:]:
        if task.objective != tasks[0].objective:
            raise UserError(
                f"stream.view: {tasks[0].name} and {task.name} have different objectives, which cannot be followed at once"
            )
    return Task(name=name, train=Joined(task.train for task in tasks), scorer="", objective=tasks[0].objective)


def independent(stream: Stream) -> Stream:
    """Each task alone from the start model: what each could reach without the others."""
    stages = [replace(stage, scored=(i,), past=(), learned=None, fresh=True) for i, stage in enumerate(stream.stages)]
    return replace(stream, stages=tuple(stages), regime=REGIMES["independent"])


def start(stream: Stream) -> Stream:
    """The start model, scored and never trained."""
    return replace(stream, stages=(), regime=REGIMES["start"])


def order(stream: Stream, names: Sequence[str]) -> Stream:
    """The same tasks in another order; all of them must be named once."""
    tasks = {task.name: task for task in stream.tasks}
    for name in names:
        if name not in tasks:
            raise UserError(f"stream.order: unknown task {quoted(name)}{did_you_mean(name, tasks)}")
    if sorted(names) != sorted(tasks):
        raise UserError(f"stream.order: expected each of {', '.join(tasks)} once, got {', '.join(names)}")
    return Stream.of(stream.name, [tasks[name] for name in names], stream.anchors, stream.class_incremental)


def limit(stream: Stream, train: int | None = None, valid: int | None = None, test: int | None = None) -> Stream:
    """At most so many examples per split and task, spread evenly over each split."""

    if train is valid is test is None:
        return stream

    def cut(task: Task) -> Task:
        return replace(
            task,
            train=spread(task.train, train),
            valid=spread(task.valid, valid),
            test=spread(task.test, test),
        )

    tasks, anchors = [cut(t) for t in stream.tasks], [cut(t) for t in stream.anchors]
    return Stream.of(stream.name, tasks, anchors, stream.class_incremental)


VIEWS = {"joint": joint, "cumulative": cumulative, "independent": independent, "start": start}
