"""What runs and strategies have noted stands on the page."""

import re

from reported import record, replay, sentence

from cl_toolkit.report import build
from cl_toolkit.report.cautions import cautions
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.tables import told

SHARED = "task sort: 3 of 200 test examples also stand in the training data"
CHOOSES = "strategies.guard: chooses by validation examples of max"


def guard(seed, *shares):
    """A run whose tasks were kept by these shares."""
    return record("guard", seed, adapters=[{"told": {"guard": {"share": share, "why": "said"}}} for share in shares])


def test_what_all_runs_note_is_said_once_and_what_some_do_with_their_names():
    runs = [record(notes=[SHARED]), replay(notes=[SHARED, CHOOSES]), replay(seed=1, notes=[SHARED, CHOOSES])]
    said = cautions(Comparison.of(runs))
    assert [text for text in said if SHARED in text or CHOOSES in text] == [f"{SHARED}.", f"replay: {CHOOSES}."]


def test_numbers_of_strategies_are_means_over_runs_task_by_task():
    rows = told(Comparison.of([record(adapters=[{"told": {}}] * 3), guard(0, 1.0, 0.5, 0.0), guard(1, 1.0, 0.25, 0.5)]))
    assert rows == [{"Method": "guard", "What": "guard.share", "Task 1": "1", "Task 2": "0.375", "Task 3": "0.25"}]


def test_they_stand_on_the_page_where_there_are_any(tmp_path):
    first_only = replay(adapters=[{"told": {"replay": {"written": 12}}}, {"told": {}}])
    text = build([record(), first_only, guard(0, 1.0, 0.5, 0.0)], tmp_path).read_text()
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr><td>.*?</tr>", text)]
    assert ["guard", "guard.share", "1", "0.5", "0"] in rows
    assert ["replay", "replay.written", "12", "-", "-"] in rows
    assert "What strategies have noted" not in build([record(), replay()], tmp_path / "none").read_text()


def test_of_two_controls_neither_is_the_control():
    runs = [record(), record("infinite", kept=0.4), replay()]
    assert sentence(runs, "infinite").text.startswith("infinite, one of the controls, learns each task to 0.90")
