"""The laws of probes: they ask, and nobody can tell from the training that they were there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, get_args

from cl_toolkit.check.law import Broken, Laws, NotApplicable
from cl_toolkit.check.runs import TASKS, TINY, Subject, Trajectory, global_states, moved, stop_after, tiny_config
from cl_toolkit.config.schema import RunConfig
from cl_toolkit.errors import UserError, quoted
from cl_toolkit.measure.exam import REMINDED
from cl_toolkit.measure.probe import Moment
from cl_toolkit.models.arrays import MLP
from cl_toolkit.models.kind import Kind
from cl_toolkit.models.requests import Reply, Request
from cl_toolkit.models.tiny import TinyLM
from cl_toolkit.runs.run import Run
from cl_toolkit.study.cells import load_run

LAWS = Laws()
law = LAWS.law

GROUNDS: tuple[tuple[type[Kind], dict[str, Any], dict[str, Any]], ...] = (
    (TinyLM, TINY, {**tiny_config()["stream"], "tasks": TASKS}),
    (MLP, {"name": "mlp", "hidden_size": 8}, {"name": "digits", "tasks": ["digits_0_1", "digits_2_3", "digits_4_5"]}),
)
"""Kinds of models -> the sections `model` and `stream` of a tiny run with one."""


class ProbeSubject(Subject):
    """A probe, in runs that are watched by it; of a model that gives what it needs."""

    def config(
        self, *, absent: bool = False, tasks: int = 2, evaluate: dict[str, Any] | None = None, **changes: Any
    ) -> RunConfig:
        """A tiny run with the probe (`absent`: without it) over so many tasks."""
        watched = {**(evaluate or {}), "probes": {} if absent else {self.reference: self.settings}}
        plain = tiny_config(evaluate=watched, **changes)
        fitting = (ground for ground in GROUNDS if self.thing.needs <= ground[0].gives)
        _, model, stream = next(fitting, GROUNDS[0])  # of a need that nobody gives the refusal tells
        plain |= {"model": model, "stream": {**stream, "tasks": stream["tasks"][:tasks]}}
        return load_run(plain)

    def rows(self, trajectory: Trajectory) -> list[dict[str, Any]]:
        """What it found."""
        return trajectory.record["probes"][self.reference]

    def spied(self, run: Run) -> Spy:
        """The run's probe, watched."""
        return Spy(run.probes[self.reference])


class Spy:
    """Keeps what passes between a probe and the run. drawn: generators that moved while it was called."""

    def __init__(self, probe: Any):
        self.asked: list[tuple[Moment, list[Any]]] = []
        self.rows: list[Any] = []
        self.drawn: list[str] = []
        self.twice: list[Moment] = []
        self.calls: list[bool] = []
        self._due, self._ask, self._read = probe.due, probe.ask, probe.read
        probe.due, probe.ask, probe.read = self.due, self.ask, self.read

    def due(self, moment: Moment) -> bool:
        before = global_states()
        found = self._due(moment)
        self.drawn += moved(before)
        self.calls.append(bool(found))
        return found

    def ask(self, moment: Moment) -> list[Any]:
        before = global_states()
        found, again = list(self._ask(moment)), list(self._ask(moment))
        self.drawn += moved(before)
        known = {e.id for exam in moment.exams.values() for e in exam.examples}
        for request in found:
            if not isinstance(request, get_args(Request)):
                raise Broken(f"ask: expected requests (Answer, Choice, Logprobs, Sample), got {quoted(request)}")
            name = request.example.id.removesuffix(REMINDED)
            if name and name not in known:  # plain text is of no example
                raise Broken(f"ask: {request.example.id} is in none of the moment's exams")
        self.asked.append((moment, found))
        if found != again:
            self.twice.append(moment)
        return found

    def read(self, moment: Moment, replies: Sequence[Reply]) -> list[Any]:
        before = global_states()
        found = list(self._read(moment, replies))
        self.drawn += moved(before)
        for row in found:
            check_row(row)
        self.rows += found
        return found


def check_row(row: Any) -> None:
    """Raise Broken for a row that is no plain data."""
    try:
        again = json.loads(json.dumps(row, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise Broken(f"the row {quoted(row)}: {error}") from error
    if not isinstance(row, dict) or again != row:
        raise Broken(f"the row {quoted(row)} is not the same after JSON")


def watched(subject: ProbeSubject) -> tuple[Spy, Trajectory]:
    """One run over two tasks with a spy between."""
    run = subject.prepare()
    spy = subject.spied(run)
    return spy, Trajectory(run)


@law(1, "it leaves no trace in the training", "a measurement that changes the training measures itself")
def traceless(subject: ProbeSubject) -> str:
    mine, plain = subject.trajectory(), subject.trajectory(absent=True)
    if mine != plain:
        raise Broken(mine.first_difference(plain))
    for key in ("matrix", "losses"):
        if mine.record[key] != plain.record[key]:
            raise Broken(f"with it the record has another {key}")
    for key in ("forwards", "extra_forwards", "backwards", "tokens"):
        if mine.record["cost"][key] != plain.record["cost"][key]:
            raise Broken(f"with it the run costs other {key}: it goes to the model past the one pass that answers")
    return (
        f"{len(mine.losses)} losses, the matrix and the weights are bit-equal with it ({len(subject.rows(mine))} rows)"
    )


@law(2, "it asks what can be answered", "one pass answers everybody's requests, each once")
def requests(subject: ProbeSubject) -> str:
    spy, _ = watched(subject)
    if not spy.asked:
        raise NotApplicable("it was never due in a run over two tasks")
    if spy.twice:
        raise Broken(f"asked twice at one moment ({spy.twice[0].kind}), it asks two things")
    count = sum(len(asked) for _, asked in spy.asked)
    return f"{count} requests at {len(spy.asked)} of {len(spy.calls)} moments"


@law(3, "its rows are plain data", "they stand in the record, which is JSON, and in `cl.load(...).probe(name)`")
def plain(subject: ProbeSubject) -> str:
    spy, trajectory = watched(subject)
    if not spy.rows:
        raise Broken("it gave no row in a run over two tasks")
    if spy.rows != subject.rows(trajectory):
        raise Broken("the record does not have the rows that it gave")
    return f"{len(spy.rows)} rows with {', '.join(spy.rows[0])}"


@law(4, "the same seed has the same rows", "or two methods differ by what they were asked")
def repeated(subject: ProbeSubject) -> str:
    spy, again = watched(subject)
    if spy.drawn:
        raise Broken(f"it draws from the global generator of {spy.drawn[0]}; use generator_from(seed, ...)")
    if subject.rows(again) != subject.rows(subject.trajectory()):
        raise Broken("a second run with the same seed has other rows")
    return f"{len(spy.rows)} rows, twice; no global generator has moved"


@law(5, "stopped at a task boundary it goes on as if nothing had happened", "what it must remember is its `state`")
def resumed(subject: ProbeSubject) -> str:
    whole = subject.rows(subject.trajectory(tasks=3))
    run = subject.prepare(tasks=3)
    stop_after(run, 2)
    try:
        again = subject.rows(Trajectory(Run(run.config, run.folder, None)))
    except UserError as error:
        raise Broken(f"the stopped run cannot go on: {error}") from error
    if again != whole:
        raise Broken(f"{len(again)} rows after a stop, {len(whole)} without, and not the same; is all in its `state`?")
    return f"stopped after task 2 of 3 and resumed: {len(whole)} rows, all the same"


@law(6, "little is enough for it", "a single task, a single example, or an evaluation of seen tasks is a run too")
def small(subject: ProbeSubject) -> str:
    run = subject.prepare(tasks=1, evaluate={"limit": 1, "tasks": "seen"})
    spy = subject.spied(run)
    try:
        run.execute()
    except Broken:
        raise
    except Exception as error:
        raise Broken(f"with one task of one example: {type(error).__name__}: {error}") from error
    return f"{len(spy.rows)} rows from one task with one example"
