"""Rows of every file format, and what is wrong with a file."""

import json

import pytest
from tables import ROWS, tasks_of, write_arrow, write_gzipped, write_json_lines, write_parquet, write_separated

from cl_toolkit.data.files import rows_in
from cl_toolkit.errors import UserError

FORMATS = {
    "train.jsonl": write_json_lines,
    "train.ndjson": write_json_lines,
    "lines.json": write_json_lines,
    "list.json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    "train.jsonl.gz": write_gzipped,
    "train.csv": write_separated,
    "train.tsv": write_separated,
    "train.parquet": write_parquet,
    "train.arrow": write_arrow,
    "stream.arrow": write_arrow,
    "train.feather": write_arrow,
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_holds_the_same_rows(tmp_path, name):
    path = tmp_path / name
    FORMATS[name](path, ROWS)
    assert [row for _, _, row in rows_in(path)] == ROWS
    (task,) = tasks_of({"t": {"path": str(path), "test_from_train": 3}}).values()
    assert len(task.train) == 9
    assert {(e.question, e.target) for e in (*task.train, *task.test)} == {
        (f"double\n{i}", str(2 * i)) for i in range(12)
    }


def test_of_tools_in_a_table_nothing_is_said_that_was_not_written(tmp_path):
    tools = [
        [{"name": "f", "parameters": {"x": {"type": "int"}}}],
        [{"name": "g", "parameters": {"y": {"type": "int"}}}],
    ]
    rows = [{"input": f"q{i}", "target": "a", "tools": each} for i, each in enumerate(tools)]
    write_parquet(tmp_path / "t.parquet", rows)
    assert [row["tools"] for _, _, row in rows_in(tmp_path / "t.parquet")] == tools


def test_text_in_a_csv_file_stays_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('input,target,note\n007,NA,\n"a\nb, ""c""",1.0,x\n')
    first, second = rows_in(path)
    assert first.row == {"input": "007", "target": "NA"}  # an empty field is an absent one
    assert second.row == {"input": 'a\nb, "c"', "target": "1.0", "note": "x"}
    assert second.where == f"{path}:4"


def twice_named():
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table([["a"], ["b"], ["c"]], names=["input", "target", "target"]), sink)
    return sink.getvalue().to_pybytes()


BAD_FILES = {
    "a.csv": (b"input,target\na,b\nc\n", ":3: has 1 fields, the header 2 (input, target)"),
    "b.csv": (b"input,input\na,b\n", ":1: a column is named 'input'; expected names that differ"),
    "c.csv": (b'input,target\n"a,b\n', ":2: unexpected end of data"),
    "d.csv": (b"input,target\na,\xff\n", ":2: not UTF-8: invalid start byte at byte 15"),
    "e.json": (b'[{"input": "a"},', ": not JSON: Expecting value: line 1 column 17 (char 16)"),
    "f.json": (b'[{"input": "a", "target": "b"}, 3]', ": row 2: expected an object with fields, got int"),
    "m.json": (b'[{"input": "a", "input": "b", "target": "c"}]', ": not JSON: the field 'input' stands twice"),
    "n.json": (b"[" * 100_000, ": is nested too deeply"),
    "o.parquet": (twice_named, ": two columns are named 'target'; expected names that differ"),
    "p.json": (b'{\n "data": []\n}', ": is one object over several lines; name the key of its rows (`rows`)"),
    "g.jsonl": (b"", ": is empty; expected at least one example"),
    "h.csv": (b"input,target\n", ": is empty; expected at least one example"),
    "i.jsonl.gz": (b"no gzip", ": cannot be read: Not a gzipped file (b'no')"),
    "j.parquet": (b"PAR", ": cannot be read: "),
    "k.arrow": (b"PAR", ": cannot be read: "),
    "l.xlsx": (
        b"",
        ": expected a file .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, .feather, each text also .gz",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_wrong_is_named_with_its_place(tmp_path, name):
    content, message = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content() if callable(content) else content)
    with pytest.raises(UserError) as error:
        list(rows_in(path))
    assert str(error.value).startswith(f"{path}{message}")
    assert "\n" not in str(error.value)
