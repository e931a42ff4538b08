"""`run --profile`: a trace and a table of a few steps, and the same numbers."""

import json

import pytest
from tiny import tiny_config, tiny_run_config

from cl_toolkit.cli import app
from cl_toolkit.runs import profile
from cl_toolkit.runs.events import Note
from cl_toolkit.runs.record import comparable
from cl_toolkit.runs.run import execute


def test_a_trace_and_a_table_are_written_and_no_number_changes(tmp_path):
    config, notes = tiny_run_config(train={"max_steps": 10}), []
    record = execute(config, tmp_path / "a", lambda e: notes.append(e) if isinstance(e, Note) else None, profile=True)
    assert comparable(record) == comparable(execute(config, tmp_path / "b"))
    trace = json.loads((tmp_path / "a" / profile.TRACE).read_text())
    steps = {e["name"] for e in trace["traceEvents"] if e.get("name", "").startswith("ProfilerStep#")}
    assert len(steps) == profile.LOOKED_AT
    table = (tmp_path / "a" / profile.TABLE).read_text()
    assert "aten::mm" in table or "aten::addmm" in table
    assert "Self CPU" in table
    assert [note.text for note in notes if note.text.startswith("profile: ")] == [
        f"profile: {tmp_path / 'a' / profile.TRACE} and {profile.TABLE}"
    ]
    assert not (tmp_path / "b" / profile.TRACE).exists()


def test_of_a_short_task_it_is_said_that_nothing_was_looked_at(tmp_path):
    notes = []
    config = tiny_run_config(train={"max_steps": 2})
    execute(config, tmp_path, lambda e: notes.append(e.text) if isinstance(e, Note) else None, profile=True)
    assert any("nothing was looked at" in text for text in notes)
    assert not (tmp_path / profile.TRACE).exists()
    execute(config, tmp_path, lambda e: notes.append(e.text) if isinstance(e, Note) else None, profile=True)
    assert "holds the finished run" in notes[-1]


def test_the_command_line_asks_for_it(tmp_path, monkeypatch):
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(tiny_config(train={"max_steps": 10})))
    monkeypatch.setattr("sys.argv", ["cl-toolkit", "run", str(path), "--profile", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 0
    assert (tmp_path / "out" / profile.TRACE).is_file()
