"""Which kind of forgetting: by hand, and in runs."""

import re
from dataclasses import replace

import pytest
from pieces import ask
from reported import record
from tiny import stopped_and_the_same, trajectory

import cl_toolkit as cl
from cl_toolkit.check import check
from cl_toolkit.measure.content import content, valid
from cl_toolkit.measure.exam import REMINDED, Exam
from cl_toolkit.measure.probe import Moment
from cl_toolkit.measure.probes.autopsy import Autopsy
from cl_toolkit.measure.scorers import as_scorer
from cl_toolkit.models.requests import Reply
from cl_toolkit.registry import SCORERS
from cl_toolkit.report import build
from cl_toolkit.report.autopsy import stacked
from cl_toolkit.types import Message, Task

LIST = "What colour?\nA. red\nB. dark red\n(c) blue"
CASES = [
    ("7", None, "The answer is 7.", 1),
    ("7", None, "8", 0),
    ("7", None, "17", 0),
    ("7", None, "7.0", 1),
    ("-7", None, "7", 0),
    ("7", None, "seven", 0),
    ("Paris", None, "It is paris!", 1),
    ("Paris", None, "", 0),
    ("New York", None, "York, New", 0),  # side by side
    ("New York", None, "in new york city", 1),
    ("the", None, "the", 1),
    ("the", None, "a cat", 0),
    ("yes", ("yes", "no"), "Yes, it is.", 1),
    ("yes", ("yes", "no"), "yes and no", 0),  # names another one too
    ("good", ("good", "very good"), "It is very good", 0),
    ("very good", ("good", "very good"), "It is very good", 1),
    ("good", ("good", "very good"), "good, not very good", 0),
    ("A", ("A", "B"), "(A)", 1),
    ("A", ("A", "B"), "A dog", 0),  # an article
    ("B", ("A", "B"), "the answer is b.", 1),
    ("B", ("A", "B"), "A or B", 0),
]


@pytest.mark.parametrize(("target", "choices", "answer", "wanted"), CASES)
def test_what_an_answer_says(target, choices, answer, wanted):
    assert content(ask("Which?", target, choices=choices), answer) == wanted


@pytest.mark.parametrize(
    ("target", "answer", "wanted"),
    [("A", "red", 1), ("A", "A. red", 1), ("A", "dark red", 0), ("B", "dark red", 1), ("C", "Blue", 1), ("A", "B", 0)],
)
def test_an_option_may_be_named_by_its_text(target, answer, wanted):
    assert content(ask(LIST, target, choices=("A", "B", "C")), answer) == wanted


@pytest.mark.parametrize(("target", "answer"), [("red", "A"), ("dark red", "(B)"), ("blue", "C) blue")])
def test_an_option_may_be_named_by_its_letter(target, answer):
    assert content(ask(LIST, target, choices=("red", "dark red", "blue")), answer) == 1
    assert content(ask(LIST, target, choices=("red", "dark red", "blue")), "D") == 0


def test_whether_an_answer_has_the_form():
    exact, numeric = (as_scorer(SCORERS.get(name, "test")) for name in ("exact_match", "numeric"))
    one = ask("?", "yes", choices=("yes", "no"))
    assert [valid(exact, one, a) for a in ("no", "maybe", " yes ")] == [True, False, True]
    assert valid(exact, ask("?", "yes"), "no") is None
    assert [valid(numeric, ask("?", "7"), a) for a in ("about 8", "none")] == [True, False]


# the probe -----------------------------------------------------------------------------------------------------------

TEST = tuple(ask(f"{i}+0", str(i)) for i in range(10, 14))


def moment(row, past=(), learned=None, kind="task_end", scorer="exact_match"):
    task = Task(name="sum", train=(ask("1+1", "2"), ask("2+2", "4")), test=TEST, scorer=scorer)
    other = Task(name="other", train=(), test=(ask("o", "x"),), scorer="token_f1")
    exams = {"sum": Exam(task, TEST, 4), "other": Exam(other, other.test, 4)}
    counts = dict.fromkeys(("row", "step", "examples_seen", "tokens_seen"), row)
    return Moment(kind=kind, task="t", exams=exams, scored=("sum", "other"), past=past, learned=learned, **counts)


def read(probe, at, *answers):
    assert len(probe.ask(at)) == len(answers)
    return list(probe.read(at, [Reply(text) for text in answers]))


def test_the_form_is_lost_or_what_is_said():
    """Four of four right; then one is right, two are hidden in a sentence, one is wrong."""
    probe = Autopsy()
    (first,) = read(probe, moment(1, learned="sum"), "10", "11", "12", "13")
    assert (first["strict"], first["content"], first["drop"], first["reminded"]) == (1, 1, 0, None)
    (second,) = read(probe, moment(2, past=("sum",), learned="other"), "10", "The answer is 11.", "It is 12", "8")
    assert (second["strict"], second["content"], second["n"]) == (0.25, 0.75, 4)
    assert (second["superficial"], second["essential"], second["drop"]) == (0.5, 0.25, 0.75)
    again = Autopsy()
    again.load_state(probe.state())
    (third,) = read(again, moment(3, past=("sum", "other")), "7 10", "7 11", "7 12", "7 13")
    assert (third["superficial"], third["essential"]) == (1, 0)


def test_the_research_numbers():
    """Strict .80 to .50, content .84 to .78: superficial .24, essential .06, in all .30."""
    probe = Autopsy()
    probe.ends["sum"] = {"strict": 0.80, "content": 0.84}
    told = {"strict": 0.50, "content": 0.78}
    essential = probe.ends["sum"]["content"] - told["content"]
    assert essential == pytest.approx(0.06)
    assert probe.ends["sum"]["strict"] - told["strict"] - essential == pytest.approx(0.24)


def test_a_score_that_is_not_right_or_wrong_is_left_out():
    probe = Autopsy()
    assert read(probe, moment(1, learned="other")) == []
    assert read(probe, moment(1, learned="sum", scorer="choices")) == []


def test_it_looks_after_each_stage_and_with_a_reminder_once_before():
    kinds = ("start", "step", "task_end")
    for reminder, wanted in ((0, [False, False, True]), (1, [True, False, True])):
        probe = Autopsy(Autopsy.Config(reminder=reminder))
        assert [probe.due(moment(1, kind=kind, learned="sum")) for kind in kinds] == wanted


def test_a_reminder_stands_before_the_question():
    probe = Autopsy(Autopsy.Config(reminder=2))
    (first,) = [r for r in probe.ask(moment(0, kind="start")) if r.example.id.startswith("10")]
    assert [(m.role, m.content) for m in first.example.messages] == [
        ("user", "1+1"), ("assistant", "2"), ("user", "2+2"), ("assistant", "4"), ("user", "10+0"),
    ]  # fmt: skip
    assert first.example.id == "10+0" + REMINDED
    assert list(probe.read(moment(0, kind="start"), [Reply("")] * 2)) == []
    lost = ["x"] * 4
    (row,) = read(probe, moment(1, learned="sum"), *lost, "10", "11", "12", "x")
    assert (row["strict"], row["reminded"]) == (0, 0.75)
    system = Message(role="system", content="s")
    asked = ask("q", "a")
    own = replace(asked, messages=(system, *asked.messages))
    exam = Exam(Task(name="t", train=(own,), test=(own,)), (own,), 4).reminded(1)
    assert [m.role for m in exam.examples[0].messages] == ["system", "user", "assistant", "user"]


def test_in_a_run_it_asks_nothing_more_and_adds_up(tmp_path):
    with_it = trajectory(tmp_path / "a", evaluate={"probes": {"autopsy": {}}})
    without = trajectory(tmp_path / "b")
    assert with_it == without
    assert with_it.record["matrix"] == without.record["matrix"]
    rows = with_it.record["probes"]["autopsy"]
    assert [(r["row"], r["scored"]) for r in rows] == [(1, "max"), (2, "last"), (2, "max")]
    for row in rows:
        column = with_it.record["tasks"].index(row["scored"])
        assert row["strict"] == pytest.approx(with_it.record["matrix"][row["row"]][column])
        lost = with_it.record["matrix"][column + 1][column] - row["strict"]
        assert row["superficial"] + row["essential"] == row["drop"] == pytest.approx(lost)
        assert row["content"] >= row["strict"]


@pytest.mark.parametrize("reminder", [0, 2])
def test_a_stopped_run_has_the_same_rows(reminder, tmp_path):
    again = stopped_and_the_same(tmp_path, evaluate={"probes": {"autopsy": {"reminder": reminder}}})
    assert all((r["reminded"] is None) == (reminder == 0) for r in again.record["probes"]["autopsy"])


def test_the_laws_of_probes_with_a_reminder():
    assert all(result.passed is not False for result in check("autopsy", settings={"reminder": 1}))


# the report ----------------------------------------------------------------------------------------------------------


def told(seed, superficial, essential, method="sequential"):
    """A run of two tasks whose first one has lost that much; the second is scored by token_f1."""
    common = {"step": 9, "n": 50, "valid": None, "reminded": None, "scored": "sort"}
    drop = superficial + essential
    rows = [
        {**common, "trained": "sort", "row": 1, "strict": 0.9, "content": 0.9, "drop": 0.0, "superficial": 0.0,
         "essential": 0.0},
        {**common, "trained": "max", "row": 2, "strict": 0.9 - drop, "content": 0.9 - essential, "drop": drop,
         "superficial": superficial, "essential": essential},
    ]  # fmt: skip
    scorers = {"scorers": ["exact_match", "token_f1"]}
    return record(method, seed, tasks=("sort", "max"), probes={"autopsy": rows}, **scorers)


def test_the_page_says_what_was_lost_and_of_which_task_it_cannot(tmp_path):
    runs = [told(i, s, 0.1, m) for m in ("a", "b") for i, s in enumerate((0.3, 0.4, 0.5))]
    text = build(runs, tmp_path).read_text()
    row = re.search(r"<td>sort</td>(.*?)</tr>", text[text.index("<h2>Which kind") :]).group(1)
    # t(2) = 4.3027 times 0.1 / sqrt(3)
    assert re.findall(r">([^<]+)</td>", row) == [
        "+0.50 (+0.25 to +0.75, n=3)", "+0.40 (+0.15 to +0.65, n=3)", "+0.10 (+0.10 to +0.10, n=3)", "0.40", "-", "-",
    ]  # fmt: skip
    assert "Left out, since the score is not right or wrong as a whole of a written answer: max (token_f1)." in text
    assert (tmp_path / "plots" / "kinds.svg").is_file()
    frame = cl.Study(tmp_path, runs).autopsy()
    assert len(frame) == 12
    assert (frame["superficial"] + frame["essential"] - frame["drop"]).abs().max() < 1e-12
    assert [plot.name for plot in cl.Study(tmp_path, runs).plot.kinds()] == ["kinds"]


def test_bars_are_stacked_and_gains_stand_to_the_left():
    figure = stacked({"up": [told(0, -0.2, 0.1)], "down": [told(0, 0.2, 0.1)]})
    bars = figure.axes[0].patches
    assert [bar.get_x() for bar in bars] == pytest.approx([0, 0, 0, 0.1])
    assert [bar.get_width() for bar in bars] == pytest.approx([0.1, 0.1, -0.2, 0.2])
    assert stacked({"plain": [record()]}) is None
