"""The laws of trackers: they get every number, change none, and are closed whatever happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cl_toolkit.check.law import Broken, Laws, NotApplicable
from cl_toolkit.check.runs import Subject, Trajectory, global_states, moved, tiny_config
from cl_toolkit.config.schema import RunConfig
from cl_toolkit.errors import UserError
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import Run
from cl_toolkit.runs.tracker import Place, Tracker
from cl_toolkit.study.cells import load_run

LAWS = Laws()
law = LAWS.law


class TrackerSubject(Subject):
    """A tracker, in runs whose numbers it gets."""

    def config(self, *, absent: bool = False, **changes: Any) -> RunConfig:
        """A tiny run with the tracker (`absent`: without it)."""
        trackers = {} if absent else {self.reference: self.settings}
        # a name by which what a program keeps of it can be told from real runs
        return load_run(tiny_config(name="cl-toolkit-check", trackers=trackers, **changes))

    def watched(self, **changes: Any) -> tuple[Run, Spy]:
        """A run, and what goes to its tracker. Raises NotApplicable where it cannot be opened here."""
        run = self.prepare(**changes)
        return run, Spy(run.trackers[0])


class Spy:
    """Notes the calls of a tracker, which go on to it."""

    def __init__(self, tracker: Tracker):
        self.calls: list[str] = []
        self.numbers: dict[str, list[float]] = {}
        self.drawn: list[str] = []
        self._open, self._log, self._close = tracker.open, tracker.log, tracker.close
        for name in ("open", "log", "close"):
            setattr(tracker, name, getattr(self, name))

    def open(self, place: Place) -> None:
        self.calls.append("open")
        try:
            self._open(place)
        except UserError as error:
            raise NotApplicable(str(error)) from error

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        before = global_states()
        self.calls.append("log")
        given = dict(numbers)
        self._log(numbers, step)
        self.drawn += moved(before)
        if dict(numbers) != given:
            raise Broken("log: it changes the numbers that it gets")
        for name, value in given.items():
            self.numbers.setdefault(name, []).append(value)

    def close(self) -> None:
        self.calls.append("close")
        self._close()


@law(1, "it changes no number", "who watches a run must not be seen in its result")
def traceless(subject: TrackerSubject) -> str:
    run, spy = subject.watched()
    mine, plain = Trajectory(run), subject.trajectory(absent=True)
    if spy.drawn:
        raise Broken(f"log: it draws from the global generator of {spy.drawn[0]}")
    if mine != plain:
        raise Broken(mine.first_difference(plain))
    one, other = comparable(mine.record), comparable(plain.record)
    differ = [key for key in one if one[key] != other.get(key) and key not in ("config", "checksum", "identity")]
    if differ:
        raise Broken(f"with it the record has another {differ[0]}")
    return "losses, weights and record are those of a run without it"


@law(
    2, "it is opened, gets the numbers, and is closed", "a run that seems to be logged and is not is found out too late"
)
def told(subject: TrackerSubject) -> str:
    run, spy = subject.watched()
    record = run.execute()
    if spy.calls[:1] != ["open"] or spy.calls[-1:] != ["close"] or spy.calls.count("close") != 1:
        raise Broken(f"its calls begin with {spy.calls[:2]} and end with {spy.calls[-2:]}")
    losses = [row["terms"]["sft"] for row in record["losses"]]
    if spy.numbers.get("loss/sft") != losses:
        raise Broken(
            f"{len(spy.numbers.get('loss/sft', []))} of {len(losses)} losses came to `log`; does it override it?"
        )
    return f"{spy.calls.count('log')} calls of log with {len(spy.numbers)} names, between open and close"


@law(3, "it is closed when the run fails", "what is open is lost, or blocks the run that goes on")
def closed(subject: TrackerSubject) -> str:
    run, spy = subject.watched(train={"learning_rate": 1e30})
    try:
        run.execute()
    except NotApplicable:
        raise
    except UserError:  # of the loss that is no number any more
        pass
    except Exception as error:
        raise Broken(f"close: {type(error).__name__}: {error}") from error
    if spy.calls[-1:] != ["close"]:
        raise Broken(f"the last call is {spy.calls[-1]}")
    return "a run that fails in its first task closes it"


@law(4, "a run that is repeated can be opened again", "a stopped run goes on with a tracker of its own")
def again(subject: TrackerSubject) -> str:
    run, _ = subject.watched()
    run.execute()
    second = Run(run.config, run.folder, None)
    spy = Spy(second.trackers[0])
    try:
        second.execute()
    except Exception as error:
        raise Broken(f"the second time: {type(error).__name__}: {error}") from error
    return f"opened twice in one folder; {spy.calls.count('log')} calls the second time"
