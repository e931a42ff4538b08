"""How few examples bring an old score back."""

import json
import shutil

import pytest
from files import call
from tiny import tiny_run_config

from cl_toolkit.errors import UserError
from cl_toolkit.models.kind import fingerprint
from cl_toolkit.runs.checkpoint import read_checked, write_checked
from cl_toolkit.runs.relearn import regained, relearn
from cl_toolkit.runs.reload import reload
from cl_toolkit.runs.run import execute
from cl_toolkit.types import Task


def learned(folder, **changes):
    train = {"max_steps": 40, "global_batch_size": 16, "learning_rate": 0.01}
    execute(tiny_run_config(train=train, checkpoint={"keep": "all"}, **changes), folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return learned(tmp_path_factory.mktemp("relearn") / "run")


def test_examples_bring_it_back_and_nothing_of_the_run_is_changed(run):
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    weights = fingerprint(reload(run).model)
    rows = list(relearn(run, (2, 32), steps=30))
    record = json.loads((run / "record.json").read_text())
    names = record["tasks"]
    assert [(row.task, row.examples) for row in rows] == [(n, k) for n in names[:-1] for k in (0, 2, 32)]
    for column, name in enumerate(names[:-1]):
        left, _, many = (row for row in rows if row.task == name)
        assert left.score == pytest.approx(record["matrix"][-1][column])
        assert left.learned == record["matrix"][column + 1][column]
        assert many.score >= left.score
        if many.regained is not None:
            assert many.regained == pytest.approx((many.score - left.score) / (left.learned - left.score))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    assert fingerprint(reload(run).model) == weights
    assert list(relearn(run, (2, 32), steps=30)) == rows


@pytest.mark.parametrize(
    ("scorer", "learned", "left", "score", "share"),
    [
        ("exact_match", 0.75, 0.25, 0.5, 0.5),
        ("exact_match", 0.5, 0.6, 0.4, None),  # it was better in the end: what falls then is not regained
        ("exact_match", 0.5, 0.5, 0.6, None),
        ("perplexity", 4.0, 8.0, 5.0, 0.75),
        ("perplexity", 8.0, 4.0, 9.0, None),
    ],
)
def test_only_what_was_lost_is_regained(scorer, learned, left, score, share):
    assert regained(Task(name="t", train=(), scorer=scorer), learned, left, score) == share


def test_a_task_alone_is_what_it_is_among_others(run):
    name = json.loads((run / "record.json").read_text())["tasks"][0]
    alone = list(relearn(run, (2,), steps=5, names=[name]))
    assert alone == [row for row in relearn(run, (2,), steps=5) if row.task == name]


def test_a_run_is_reloaded_whose_settings_are_refused_today(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "record.json"
    record = read_checked(path)
    record["config"]["generation"]["gpu_memory_utilization"] = 0.5  # idle beside the engine of its own
    write_checked(path, record)
    assert fingerprint(reload(tmp_path / "run").model) == fingerprint(reload(run).model)


@pytest.mark.parametrize("between", ["continue", "merge", "stack"])
def test_adapters_learn_again_as_in_their_run(tmp_path, between):
    model = {**tiny_run_config().plain["model"], "adapter": {"r": 2, "between_tasks": between}}
    rows = list(relearn(learned(tmp_path / "run", model=model), (8,), steps=10))
    assert len(rows) >= 2
    assert all(0 <= row.score <= 1 for row in rows)


def test_the_command_and_what_it_refuses(run, monkeypatch, capsys):
    code, said, _ = call(monkeypatch, capsys, "relearn", run, "--examples", "2", "--steps", "3", "--json")
    assert code == 0
    assert [row["examples"] for row in json.loads(said)][:2] == [0, 2]
    code, said, _ = call(monkeypatch, capsys, "relearn", run, "--examples", "2", "--steps", "3")
    assert "regained" in said
    for options, message in (
        (["--examples", "0,2"], "--examples 0,2: expected numbers from 1 on"),
        (["--tasks", "srot"], "--tasks: srot is no earlier task"),
    ):
        code, _, told = call(monkeypatch, capsys, "relearn", run, *options)
        assert code == 2
        assert message in told


def test_it_needs_one_model_that_learned_one_task_after_the_other(tmp_path):
    stream = {**tiny_run_config().plain["stream"], "view": "independent"}
    with pytest.raises(UserError, match="relearn is for a model that has learned the tasks of one stream"):
        list(relearn(learned(tmp_path / "run", stream=stream)))
