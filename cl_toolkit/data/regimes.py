"""Views of a stream: a view of a stream is a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cl_toolkit.errors import UserError, did_you_mean, quoted
from cl_toolkit.types import SEQUENTIAL, Regime, Stream, Task, spread

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
    union = Task(name="joint", train=tuple(e for task in stream.tasks for e in task.train), scorer="")
    return replace(stream, tasks=(union,), row_of=(len(stream.scored),), regime=REGIMES["joint"])


def cumulative(stream: Stream) -> Stream:
    """Each task together with all before it, going on from the model so far."""
    tasks = tuple(
        replace(task, train=tuple(e for earlier in stream.tasks[: i + 1] for e in earlier.train))
        for i, task in enumerate(stream.tasks)
    )
    return replace(stream, tasks=tasks, regime=REGIMES["cumulative"])


def independent(stream: Stream) -> Stream:
    """Each task alone from the start model: what each could reach without the others."""
    return replace(stream, regime=REGIMES["independent"])


def start(stream: Stream) -> Stream:
    """The start model, scored and never trained."""
    return replace(stream, tasks=(), row_of=(), regime=REGIMES["start"])


def order(stream: Stream, names: Sequence[str]) -> Stream:
    """The same tasks in another order; all of them must be named once."""
    tasks = {task.name: task for task in stream.tasks}
    for name in names:
        if name not in tasks:
            raise UserError(f"stream.order: unknown task {quoted(name)}{did_you_mean(name, tasks)}")
    if sorted(names) != sorted(tasks):
        raise UserError(f"stream.order: expected each of {', '.join(tasks)} once, got {', '.join(names)}")
    return Stream.of(stream.name, [tasks[name] for name in names], stream.anchors)


def limit(stream: Stream, train: int | None = None, valid: int | None = None, test: int | None = None) -> Stream:
    """At most so many examples per split and task, spread evenly over each split."""

    def cut(task: Task) -> Task:
        return replace(
            task, train=spread(task.train, train), valid=spread(task.valid, valid), test=spread(task.test, test)
        )

    return Stream.of(stream.name, [cut(t) for t in stream.tasks], [cut(t) for t in stream.anchors])


VIEWS = {"joint": joint, "cumulative": cumulative, "independent": independent, "start": start}
