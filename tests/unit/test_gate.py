"""The gate of a pipeline: what fell, in which direction, and the exit code."""

import json
import sys

import pytest
from tiny import tiny_config

import cl_toolkit as cl
from cl_toolkit import UserError
from cl_toolkit.cli.app import main
from cl_toolkit.measure.metrics import NOT_EVALUATED
from cl_toolkit.report.gate import gate
from cl_toolkit.runs.checkpoint import write_checked
from cl_toolkit.runs.record import SCHEMA_VERSION


def record(matrix, higher=None, anchors=(), made_of=None, **changes):
    """By hand: rows of the matrix; tasks a, b, ... learned one after the other; anchors: name -> (scores by row, direction)."""
    tasks = [chr(ord("a") + i) for i in range(len(matrix[0]))]
    stages = made_of or [[task] for task in tasks]
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "finished",
        "tasks": tasks,
        "stages": [{"task": "+".join(names), "row": i + 1, "made_of": names} for i, names in enumerate(stages)],
        "matrix": matrix,
        "higher_is_better": higher or [True] * len(tasks),
        "anchors": list(anchors),
        "anchor_matrix": [list(row) for row in zip(*(anchors[a][0] for a in anchors), strict=True)]
        if anchors
        else [[]],
        "anchor_higher_is_better": [anchors[a][1] for a in anchors],
        **changes,
    }


def verdicts(made, margin=0.02):
    return {row.name: row.kept for row in gate(made, margin)}


def test_a_task_is_held_to_its_score_right_after_it_was_learned():
    """Not to the one before training, nor to its best."""
    made = record([[0.9, 0.1], [0.5, 0.95], [0.48, 0.6]])
    assert verdicts(made) == {"a": True, "b": True}  # 0.5 - 0.48 is the margin itself, though not in floats
    assert verdicts(made, 0.019) == {"a": False, "b": True}
    assert gate(made, 0.0)[0].lost == pytest.approx(0.02)
    assert verdicts(record([[0.0, 0.0], [0.5, 0.0], [0.8, 0.6]]), 0.0) == {"a": True, "b": True}


def test_a_task_that_fell_by_its_own_training_is_named():
    made = record([[0.9, 0.1, 0.5], [0.5, 0.1, 0.5], [0.48, 0.6, 0.5], [0.5, 0.6, 0.49]])
    assert {row.name: (row.start, row.harmed) for row in gate(made, 0.02)} == {
        "a": (0.9, True), "b": (0.1, False), "c": (0.5, False)
    }  # fmt: skip
    worse = record([[10.0], [10.3]], higher=[False], anchors={"talk": ([0.8, 0.1], True)})
    assert {row.name: row.harmed for row in gate(worse, 0.02)} == {"a": True, "talk": False}


def test_where_lower_is_better_the_margin_is_a_share():
    made = record([[50.0, 9.0], [20.0, 9.0], [20.4, 8.0]], higher=[False, False])
    assert verdicts(made, 0.02) == {"a": True, "b": True}
    assert verdicts(made, 0.019) == {"a": False, "b": True}
    assert verdicts(record([[50.0], [20.0], [10.0]], higher=[False]), 0.0) == {"a": True}
    from_none = record([[5.0, 1.0], [0.0, 1.0], [0.1, 1.0]], higher=[False, True])
    assert verdicts(from_none) == {"a": False, "b": True}
    assert json.loads(json.dumps(gate(from_none, 0.0)[0].plain(), allow_nan=False))["lost"] is None


def test_an_anchor_is_held_to_the_start():
    flat = [[0.5], [0.5]]
    for scores, higher, kept in (
        ([0.8, 0.77], True, False),
        ([0.8, 0.79], True, True),
        ([0.8, 0.9], True, True),
        ([10.0, 10.1], False, True),
        ([10.0, 10.3], False, False),
        ([10.0, 2.0], False, True),
    ):
        assert verdicts(record(flat, anchors={"talk": (scores, higher)})) == {"a": True, "talk": kept}


def test_what_was_not_scored_does_not_pass():
    made = record([[NOT_EVALUATED] * 2, [0.5, NOT_EVALUATED], [NOT_EVALUATED, 0.4]])
    assert verdicts(made) == {"a": False, "b": True}
    (first, _) = gate(made, 0.02)
    assert (first.name, first.now, first.lost) == ("a", None, None)  # what cannot be said comes first


def test_tasks_learned_together_or_never():
    together = record([[0.1, 0.1], [0.0, 0.0], [0.7, 0.8]], made_of=[["a", "b"]])
    together["stages"][0]["row"] = 2
    assert verdicts(together) == {"a": True, "b": True}
    assert verdicts(record([[0.9, 0.1], [0.9, 0.5], [0.1, 0.5]], made_of=[["b"]])) == {"b": True}
    again = record([[0.1, 0.1], [0.9, 0.1], [0.2, 0.9]], made_of=[["a"], ["a", "b"]])  # cumulative: of its first end
    assert verdicts(again) == {"a": False, "b": True}


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["cl-toolkit", "gate", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, capsys.readouterr()


def test_the_exit_code_and_the_table(tmp_path, monkeypatch, capsys):
    made = record([[0.9, 0.1], [0.5, 0.9], [0.4, 0.6]], anchors={"talk": ([0.8, 0.8, 0.8], True)})
    write_checked(tmp_path / "record.json", made)
    code, said = call(monkeypatch, capsys, tmp_path, "--margin", 0.2)
    assert code == 0
    assert "all kept within 0.2" in said.out
    code, said = call(monkeypatch, capsys, tmp_path)
    assert code == 1
    lines = said.out.splitlines()
    assert lines[1].split() == ["a", "0.5", "0.4", "0.1", "FELL"]
    assert "note: a got worse by its own training: 0.9, then 0.5" in lines
    assert ["talk", "(anchor)", "0.8", "0.8", "0", "kept"] in [line.split() for line in lines]
    assert lines[-1] == "1 of 3 fell by more than 0.02"
    code, said = call(monkeypatch, capsys, tmp_path, "--json")
    found = json.loads(said.out)
    assert (code, found["kept"], found["margin"]) == (1, False, 0.02)
    assert [row["name"] for row in found["rows"] if not row["kept"]] == ["a"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--margin", "-1"], "--margin -1.0: expected a number from 0 on"),
        (["--margin", "nan"], "--margin nan: expected a number from 0 on"),
        (["--margin", "much"], "Invalid value for '--margin'"),
        (["--martin", "1"], "No such option: --martin"),
    ],
)
def test_a_wrong_call_is_exit_code_2(words, told, tmp_path, monkeypatch, capsys):
    write_checked(tmp_path / "record.json", record([[0.9], [0.5]]))
    code, said = call(monkeypatch, capsys, tmp_path, *words)
    assert code == 2
    assert told in said.err


def test_what_is_no_finished_run_is_exit_code_2(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, capsys, tmp_path / "nowhere")[0] == 2
    write_checked(tmp_path / "record.json", record([[0.9], [0.5]], status="running"))
    code, said = call(monkeypatch, capsys, tmp_path)
    assert code == 2
    assert "the run is running, not finished" in said.err
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "record.json").unlink()
    code, said = call(monkeypatch, capsys, tmp_path)
    assert (code, said.err.count("\n")) == (2, 1)
    assert "the run is not finished" in said.err
    old = record([[0.9], [0.5]], anchors={"talk": ([1.0, 1.0], True)})
    del old["anchor_higher_is_better"]
    with pytest.raises(UserError, match="in which direction its anchors"):
        gate(old, 0.02)
    with pytest.raises(UserError, match="nothing to keep"):
        gate(record([[0.9]], made_of=[[]]), 0.02)


def test_a_real_run_with_an_anchor(tmp_path, monkeypatch, capsys):
    stream = {"tasks": ["max", "last"], "anchors": ["sort"]}
    made = cl.run(tiny_config(stream=stream), out=tmp_path)
    rows = {row.name: row for row in gate(made, 0.02)}
    assert rows["sort"].anchor
    assert rows["sort"].before == made["anchor_matrix"][0][0]
    assert rows["max"].before == made["matrix"][1][0]
    assert call(monkeypatch, capsys, tmp_path, "--margin", 1)[0] == 0
