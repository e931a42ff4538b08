"""Results as tables and figures in Python."""

import json
import math
import xml.etree.ElementTree as ET

import pytest
from reported import TASKS, failed, joint, record, replay, write_study

import cl_toolkit as cl
from cl_toolkit import UserError
from cl_toolkit.report.figures import drawn
from cl_toolkit.report.notebook import Shown
from cl_toolkit.report.tidy import ANSWERS, COSTS, MATRIX, RUN, RUNS
from cl_toolkit.runs.record import write_answers


def said(task, answer, score):
    return {"task": task, "id": f"{task}-0", "question": "?", "target": "a", "answer": answer, "score": score}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two methods on three tasks, joint training, a failed run; answers of one run, of which one file was edited since."""
    folder = tmp_path_factory.mktemp("study")
    runs = [record(seed={"data": 0, "init": 1, "memory": 2, "rollout": 3}), replay(), joint(), failed("ewc")]
    place = folder / "runs" / "replay" / "given-s0"
    place.mkdir(parents=True)
    rows = [[said("sort", "b", 0.0)], [said("sort", "a", 1.0), said("max", "b\u2028", 0.0)]]
    runs[1]["answers"] = dict(write_answers(place, i, [json.dumps(line) for line in row]) for i, row in enumerate(rows))
    runs[1]["answers"] |= dict([write_answers(place, 2, [json.dumps(said("max", "a", 1.0))])])
    (place / "answers" / "row-2.jsonl").write_text("{}")
    write_study(folder, runs)
    return cl.load(folder)


def test_each_table_has_its_columns_and_begins_with_the_run(study):
    tables = {"runs": RUNS, "matrix": MATRIX, "answers": ANSWERS, "costs": COSTS}
    for name, columns in tables.items():
        assert tuple(getattr(study, name)().columns) == columns, name
    for table in (study.curves(), study.metrics):
        assert set(RUN) <= set(table.columns)


def test_runs_say_what_each_was_and_where_it_lies(study):
    table = study.runs().set_index("method")
    assert list(table["seed"]) == [0, 0, 0, "0-1-2-3"]
    assert dict(table["status"]) == {
        "ewc": "failed",
        "joint": "finished",
        "replay": "finished",
        "sequential": "finished",
    }
    assert table.loc["ewc", "error"] == "RuntimeError: out of memory"
    assert list(table.loc["replay", ["strategies", "objective", "model", "tasks", "regime"]]) == [
        "replay", "sft", "tiny-lm", 3, "sequential",
    ]  # fmt: skip
    assert table.loc["replay", "folder"] == str(study.folder / "runs" / "replay" / "given-s0")


def test_a_row_per_cell_of_the_matrix(study):
    table = study.matrix()
    assert len(table) == 3 * 4 * 3
    cell = table.query("method == 'replay' and row == 2 and task == 'sort'")
    assert cell[["after", "score", "chance", "unit", "examples"]].values.tolist() == [
        ["max", 0.6, 0.1, "accuracy", 200]
    ]
    assert set(table.query("row == 0")["after"]) == {""}
    ends = table.query("row == 3").groupby("method")["score"].mean()
    metrics = study.metrics.set_index("method")["acc"]
    assert all(math.isclose(ends[method], metrics[method]) for method in ends.index)
    assert table.query("method == 'joint' and row == 1")["score"].isna().all()


def test_answers_are_those_that_the_record_knows(study):
    table = study.answers()
    assert table[["method", "row", "after", "task", "answer", "score"]].values.tolist() == [
        ["replay", 0, "", "sort", "b", 0.0],
        ["replay", 1, "sort", "sort", "a", 1.0],
        ["replay", 1, "sort", "max", "b\u2028", 0.0],
    ]
    assert any("row-2.jsonl: is missing, damaged or edited" in note for note in study.notes)


def test_costs_are_the_columns_of_the_summary_one_below_the_other(study):
    table = study.costs()
    wide = table.pivot(index="method", columns="cost", values="value")
    metrics = study.metrics.query("status == 'finished'").set_index("method")
    for cost in wide.columns:
        assert dict(wide[cost]) == dict(metrics[cost]), cost
    assert wide.loc["replay", "compute_seconds_train"] == 18.0
    assert set(table["compute_unit"]) == {"CPU s"}


def test_tables_of_nothing_have_their_columns(tmp_path):
    write_study(tmp_path, [failed()])
    empty = cl.load(tmp_path)
    assert [tuple(getattr(empty, name)().columns) for name in ("matrix", "answers", "costs")] == [
        MATRIX,
        ANSWERS,
        COSTS,
    ]


def test_a_notebook_shows_the_figures_of_the_report(study):
    tradeoff = study.plot.tradeoff()
    assert [plot.name for plot in tradeoff] == ["retention", "cost"]
    page = tradeoff._repr_html_()
    ET.fromstring(f"<div>{page}</div>".replace("xlink:href", "href"))  # whole elements
    assert page.count("<svg ") == 2
    assert tradeoff[1].caption in page
    with pytest.raises(UserError, match=r"study.plot: no finished run has what curves and losses is drawn of"):
        cl.Study(study.folder, [failed()]).plot.curves()


def test_what_a_notebook_shows_runs_nothing(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    tasks = (evil, *TASKS[1:])
    write_study(tmp_path, [record(tasks=tasks), replay(tasks=tasks)])
    plots = cl.load(tmp_path).plot
    (curves,), (matrix,) = plots.curves(), plots.matrix()
    assert evil in matrix.caption
    for plot in (curves, matrix):
        assert "<img" not in Shown([plot])._repr_html_()
    assert curves._repr_svg_() == curves.svg


def test_only_what_is_wanted_is_drawn(study):
    from cl_toolkit.report.comparison import Comparison

    comparison = Comparison.of(study.records)
    assert [plot.name for plot in drawn(comparison, wanted=("cost",))] == ["cost"]
