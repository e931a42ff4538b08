"""Trackers: listeners that get numbers, and change none."""

import json
import math

import pytest
from tiny import tiny_config

import cl_toolkit as cl
from cl_toolkit import UserError
from cl_toolkit.runs.events import Finished, Measured, Note, Scored, Stepped, TaskEnded
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.tracker import Tracker, numbers

SEEN = []


class Seen(Tracker):
    """Keeps what it gets."""

    def open(self, place):
        SEEN.append(("open", place.study, place.run))

    def log(self, numbers, step):
        SEEN.append((step, dict(numbers)))

    def close(self):
        SEEN.append(("close",))


def test_the_numbers_of_events():
    step = Stepped(
        task="a", step=3, losses={"sft": 1.5, "ewc": math.nan}, learning_rate=0.1, grad_norm=None, seconds=2.0
    )
    assert numbers(step) == {"loss/sft": 1.5, "learning_rate": 0.1, "seconds": 2.0}
    assert numbers(Scored(row=1, step=3, scores={"a": 0.5})) == {"score/a": 0.5}
    curve = {"step": 3, "trained": "b", "scored": "a", "lag": 1, "examples_seen": 8, "value": 0.25, "n": 4}
    assert numbers(Measured(probe="curves", step=3, rows=[curve])) == {"curves/a": 0.25}
    drift = {
        "step": 3,
        "trained": "b",
        "row": 1,
        "kl": 0.5,
        "standard_error": None,
        "n": 4,
        "direction": "start || now",
    }
    assert numbers(Measured(probe="drift", step=3, rows=[drift])) == {"drift/kl": 0.5, "drift/n": 4.0}
    assert numbers(TaskEnded(task="a", index=0, step=3, cost={"steps": 3, "compute_unit": "CPU s"})) == {
        "cost/steps": 3.0
    }
    assert numbers(Finished(metrics={"acc": 0.5, "fwt": None}, cost={}, step=6)) == {"metric/acc": 0.5}
    assert numbers(Note(text="hello")) == {}


@pytest.fixture
def seen():
    SEEN.clear()
    return SEEN


def test_a_tracker_gets_what_happens_and_changes_nothing(tmp_path, seen):
    plain = cl.run(tiny_config(), out=tmp_path / "a")
    tracked = cl.run(tiny_config(trackers={f"{__name__}:Seen": {}}), out=tmp_path / "b")
    mine, other = comparable(tracked), comparable(plain)
    for key in {*mine} - {"config", "checksum", "identity"}:
        assert mine[key] == other[key], key
    assert seen[0] == ("open", "tiny", "run/given-s0")
    assert seen[-1] == ("close",)
    logged = [row for row in seen[1:-1] if "loss/sft" in row[1]]
    assert [step for step, _ in logged] == list(range(1, 9))
    assert [row[1]["loss/sft"] for row in logged] == [row["terms"]["sft"] for row in plain["losses"]]
    assert seen[-2][1]["metric/acc"] == plain["metrics"]["acc"]
    # another tracker is the same run
    again = cl.run(tiny_config(), out=tmp_path / "b")
    assert again == tracked


def test_it_is_closed_when_the_run_fails(tmp_path, seen):
    with pytest.raises(UserError, match=r"a lower train\.learning_rate"):
        cl.run(tiny_config(trackers={f"{__name__}:Seen": {}}, train={"learning_rate": 1e30}), out=tmp_path)
    assert seen[-1] == ("close",)


def test_events_are_on_disk(tmp_path):
    record = cl.run(tiny_config(), out=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    names = [row["event"] for row in rows]
    assert names[0] == "start"
    assert names[-1] == "finished"
    assert [row["losses"] for row in rows if row["event"] == "step"] == [row["terms"] for row in record["losses"]]
    per_task = ["task_began", "learned", "scored", "saved", "task_ended"]
    assert [n for n in names if n in per_task] == ["scored", *per_task, *per_task]


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(
        UserError, match=r"trackers.trackio: needs the package trackio: pip install 'cl-toolkit\[trackio\]'"
    ):
        cl.run(tiny_config(trackers={"trackio": {}}), out=tmp_path)


@pytest.mark.parametrize(
    ("trackers", "words"),
    [
        ({"tensorbord": {}}, "trackers.tensorbord: unknown tracker 'tensorbord'; did you mean 'tensorboard'"),
        ({"trackio": {"projekt": "x"}}, "trackers.trackio.projekt: unknown key; did you mean 'project'"),
        (3, "trackers: expected"),
    ],
)
def test_a_wrong_tracker_is_refused(trackers, words, tmp_path):
    with pytest.raises(UserError) as error:
        cl.run({**tiny_config(), "trackers": trackers}, out=tmp_path)
    assert words in str(error.value)


def test_tensorboard_has_the_numbers(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = cl.run(tiny_config(trackers=["tensorboard"]), out=tmp_path)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    losses = [event.value for event in found.Scalars("loss/sft")]
    assert losses == pytest.approx([row["terms"]["sft"] for row in record["losses"]])
    assert [event.step for event in found.Scalars("loss/sft")] == list(range(1, 9))


def test_trackio_has_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    cl.run(tiny_config(trackers={"trackio": {"project": "mine"}}), out=tmp_path / "run")
    assert list((tmp_path / "trackio").glob("mine*"))
