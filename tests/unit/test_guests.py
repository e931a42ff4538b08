"""Guests' code: what it raises, and what it returns wrongly, is one line with its place."""

import pytest
from files import call, write_case
from tiny import tiny_run_config, trajectory

from cl_toolkit import UserError
from cl_toolkit.data.spread import spread
from cl_toolkit.data.streams import build_stream
from cl_toolkit.runs.run import Run
from cl_toolkit.study.cells import load_run
from cl_toolkit.types import Example, Message

HEAD = """from dataclasses import dataclass
from cl_toolkit import Strategy
from cl_toolkit.objective import Objective
from cl_toolkit.types import Example, Message, Task


def ask(i, **fields):
    return Example(id=str(i), messages=(Message(role="user", content="q"),), **{"target": "a", **fields})


class Mine:
    @dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def __init__(self, config):
        pass

    def names(self):
        return ["one", "two"]

    def tasks(self, names, prompt):
        return [Task(name=n, train=(ask(n + "0"),), test=(ask(n + "1"),)) for n in names]


class WithStrings(Mine):
    def names(self):
        {names}

    def tasks(self, names, prompt):
        {tasks}


class Breaks(Strategy):
    def __init__(self, config=None):
        super().__init__(config)
        raise RuntimeError("boom")


class BreaksToo(Objective):
    def __init__(self, config=None):
        raise SystemExit(3)
"""
NAMES, TASKS = "return ['one', 'two']", "return super().tasks(names, prompt)"


def config(tmp_path, stream="Mine", names=NAMES, tasks=TASKS, **sections):
    path = tmp_path / "guest.py"
    path.write_text(HEAD.replace("{names}", names).replace("{tasks}", tasks))
    place = write_case(tmp_path, **sections)
    return place.write_text(place.read_text().replace("name: jsonl", f"name: {path}:{stream}").replace(
        f"  path: {tmp_path / 'data'}\n", "")) and place  # fmt: skip


def test_a_stream_of_ones_own_works(tmp_path):
    assert [t.name for t in build_stream(load_run(config(tmp_path))).tasks] == ["one", "two"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("return None", "WithStrings.names: expected a list of texts, got None"),
        ("return [1]", "WithStrings.names: expected a list of texts, got [1]"),
        ("return []", "WithStrings.names: gives no task"),
        ("return 1 / 0", "WithStrings.names: ZeroDivisionError: division by zero (GUEST:28)"),
        ("exit(0)", "WithStrings.names: SystemExit: 0"),
        ("return list(map(str, range(2000)))", "stream.name: 2000 tasks; expected at most 1000"),
    ],
)
def test_names_that_are_none(tmp_path, names, message):
    with pytest.raises(UserError) as error:
        load_run(config(tmp_path, "WithStrings", names=names))
    assert message.replace("GUEST", str(tmp_path / "guest.py")) in str(error.value)


TASK = "return [Task(name=n, train=({train},), test=(ask(n),)) for n in names]"


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("return None", "WithStrings.tasks: expected a list of Task, got None"),
        ("return []", "WithStrings.tasks: expected the tasks one, two, got "),
        ("raise KeyError('x')", "WithStrings.tasks: KeyError: 'x' (GUEST:31)"),
        (
            "return [Task(name=n, train='abc') for n in names]",
            "task one: train: expected a tuple of Example, got 'abc'",
        ),
        (TASK.format(train="3"), "task one: train: expected examples, got 3"),
        (TASK.format(train="ask(0, target=3)"), "task one: train: example 0: target: expected text, got 3"),
        (TASK.format(train="Example(id=1)"), "task one: train: id: expected text, got 1"),
        (TASK.format(train="ask(n)"), "two examples have the id 'one' (task one, train; task one, test)"),
        (TASK.format(train="ask('same')"), "two examples have the id 'same' (task one, train; task two, train)"),
        ("return [Task(name=n, train=(), test=(ask(n),)) for n in names]", "task one: has no training examples"),
    ],
)
def test_tasks_that_are_none(tmp_path, tasks, message):
    with pytest.raises(UserError) as error:
        build_stream(load_run(config(tmp_path, "WithStrings", tasks=tasks)))
    said = str(error.value)
    assert message.replace("GUEST", str(tmp_path / "guest.py")) in said
    assert said.startswith(("stream.name: ", "the config: stream.name: "))


def test_a_stream_without_settings(tmp_path):
    for name in ("ask", "Example"):
        with pytest.raises(UserError, match=r"stream.name: .*: expected a class with a dataclass Config in it"):
            load_run(config(tmp_path, name))


def test_constructors_that_fail(tmp_path, monkeypatch, capsys):
    guest = tmp_path / "guest.py"
    for sections, message in (
        ({"strategies": {f"{guest}:Breaks": {}}}, f"Breaks: RuntimeError: boom ({guest}:37)"),
        ({"objective": {"name": f"{guest}:BreaksToo"}}, f"BreaksToo: SystemExit: 3 ({guest}:42)"),
    ):
        settings = config(tmp_path, **sections)
        code, _, said = call(monkeypatch, capsys, "run", settings, "--out", tmp_path / "out")
        assert code == 2
        assert message in said


def test_ids_alike_in_two_tasks_would_take_the_wrong_scorer(tmp_path):
    run = Run(load_run(config(tmp_path)), tmp_path / "out", None)
    judge = run.score_by_own_task
    assert judge(Example(id="one0", messages=(Message(role="user", content="q"),), target="a"), "a") == 1.0


def test_a_curve_is_of_the_same_examples_at_every_lag(tmp_path):
    """Of twelve test examples eight are scored, and three of these are the curve's."""
    changes = {
        "stream": {"tasks": ["max", "last"], "test_size": 12},
        "train": {"max_steps": 2},
        "evaluate": {"limit": 8, "forgetting_curve": {"schedule": "log_spaced", "examples": 3}},
    }
    run = Run(tiny_run_config(**changes), tmp_path / "run", None)
    curves, asked = run.probes["curves"], []
    plain = curves.ask

    def ask(moment):
        requests = plain(moment)
        asked.append([r.example.id for r in requests])
        return requests

    curves.ask = ask
    run.execute()
    whole = [e.id for e in run.exams["max"].examples]
    of_max = [ids for ids in asked if ids[0].startswith("max")]
    assert (len(whole), len(of_max)) == (8, 3)  # its own end, and one and two steps later
    assert all(ids == list(spread(whole, 3)) for ids in of_max)
    points = run.record["probes"]["curves"]
    assert {row["n"] for row in points} == {3}
    assert trajectory(tmp_path / "again", **changes).record["probes"]["curves"] == points
