"""The stream `dataset`: every file format, every shape of row, columns and labels, splits that are cut, tasks that are cut."""

import csv
import gzip
import hashlib
import json
import sys
import types

import pytest

from cl_toolkit.benchmarks.dataset import Dataset
from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.data import streams
from cl_toolkit.data.facts import overlap_lines
from cl_toolkit.data.files import rows_in
from cl_toolkit.data.streams import build_stream
from cl_toolkit.errors import UserError
from cl_toolkit.measure.scorers import Scorer, score
from cl_toolkit.models.sections import Prompt
from cl_toolkit.runs.run import execute
from cl_toolkit.study.cells import load_run
from cl_toolkit.types import Example

ROWS = [{"instruction": "double", "input": str(i), "target": str(2 * i)} for i in range(12)]


def tasks_of(sources, prompt=None, **settings):
    builder = Dataset(typed(Dataset.Config, {"sources": sources, **settings}, "stream", "here"))
    section = typed(Prompt, base_layer()["prompt"] | (prompt or {}), "prompt", "here")
    return {task.name: task for task in builder.tasks(builder.names(), section)}


def write_json_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))


def write_gzipped(path, rows):
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))


def write_separated(path, rows):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_arrow(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(rows)
    opened = pyarrow.ipc.new_stream if path.name.startswith("stream") else pyarrow.ipc.new_file
    with opened(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=5)


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


def shaped(tmp_path, row, prompt=None):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (task,) = tasks_of({"t": {"path": str(tmp_path / "rows.jsonl")}}, prompt).values()
    return list(task.train)


def said(example):
    return [(m.role, m.content) for m in example.messages], example.target


USER, CALL = {"role": "user", "content": "q"}, {"name": "f", "arguments": {"x": 1}}
ANSWER = {"role": "assistant", "content": "a"}
TOOL = {"type": "function", "function": {"name": "f"}}
SHAPES = {
    "alpaca": ({"instruction": "i", "input": "q", "output": "a"}, [("user", "i\nq")]),
    "alpaca without input": ({"instruction": "i", "output": "a"}, [("user", "i")]),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, [("user", "q")]),
    "turns as prompt": (
        {"prompt": [{"role": "system", "content": "s"}, USER], "completion": [{"role": "assistant", "content": "a"}]},
        [("system", "s"), ("user", "q")],
    ),
    "sharegpt": (
        {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        [("system", "s"), ("user", "q")],
    ),
    "sharegpt with roles": ({"conversations": [USER, {"role": "assistant", "content": "a"}]}, [("user", "q")]),
    "messages": ({"messages": [USER, {"role": "assistant", "content": "a"}]}, [("user", "q")]),
    "content in parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "!"}]},
                      {"role": "assistant", "content": "a"}]},
        [("user", "q!")],
    ),
    "history": ({"history": [["p", "r"]], "instruction": "q", "output": "a"},
                [("user", "p"), ("assistant", "r"), ("user", "q")]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_is_read(tmp_path, name):
    row, turns = SHAPES[name]
    (example,) = shaped(tmp_path, row)
    assert said(example) == (turns, "a")


def test_calls_and_tools_of_sharegpt(tmp_path):
    turns = [("human", "q"), ("function_call", json.dumps(CALL)), ("observation", "1"), ("gpt", "a")]
    row = {"conversations": [{"from": f, "value": v} for f, v in turns], "tools": json.dumps([TOOL])}
    (example,) = shaped(tmp_path, row)
    assert example.tools == (TOOL,)
    assert said(example) == ([("user", "q"), ("assistant", ""), ("tool", "1")], "a")
    assert example.messages[1].extra == {"tool_calls": [{"type": "function", "function": CALL}]}


REFUSED = {
    "preferences": ({"prompt": "q", "chosen": "a", "rejected": "b"}, "chosen: holds a pair of answers, one preferred"),
    "tokens": ({"input_ids": [1], "labels": [1]}, "labels: holds tokens and labels"),
    "a completion alone": ({"completion": "a"}, "completion: stands alone; expected a field prompt beside it"),
    "a mixed pair": ({"prompt": "q", "completion": []}, "prompt, completion: expected two texts or two lists of turns"),
    "a speaker": ({"conversations": [{"from": "alien", "value": "q"}]}, "conversations[0]: from: expected system, human"),
    "a call": ({"conversations": [{"from": "function_call", "value": "f(1)"}]}, "conversations[0]: value: expected JSON"),
    "tools": ({"prompt": "q", "completion": "a", "tools": "f"}, "tools: expected JSON, got 'f'"),
    "two conversations": ({"messages": [USER], "conversations": []}, "conversations: stands beside another conversation"),
    "a prompt and messages": ({"messages": [USER], "prompt": "q", "completion": "a"},
                              "completion: stands beside another conversation; leave one out"),
    "references as text": ({"input": "q", "target": ["a", "b"], "references": "cd"},
                           "references: expected a list of texts, got 'cd'"),
    "a completion of two answers": (
        {"prompt": [USER], "completion": [ANSWER, USER, ANSWER]},
        "messages[1]: weight: 1, but only the last turn is learned; set 0, or prompt.learn_turns: all"),
    "two answers": ({"input": "q", "target": "a", "output": "b"}, "output: unknown field"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}]},
                 "messages[0]: content: expected text, or parts {type: text, text}, got {'type': 'image'}"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learned_is_refused_by_name(tmp_path, name):
    row, message = REFUSED[name]
    with pytest.raises(UserError) as error:
        shaped(tmp_path, row)
    assert str(error.value).startswith(f"{tmp_path / 'rows.jsonl'}:1: {message}")


def conversation(*turns):
    return {"messages": [{"role": r, "content": c, **(w[0] if w else {})} for r, c, *w in turns]}


ALL = {"learn_turns": "all"}


def test_all_turns_are_learned_each_as_it_is_asked_for(tmp_path):
    row = conversation(
        ("system", "s"), ("user", "1"), ("assistant", "one"), ("user", "2"), ("assistant", "two", {"weight": 0}),
        ("user", "3"), ("assistant", "three", {"weight": 1}),
    )  # fmt: skip
    first, last = shaped(tmp_path, row, ALL)
    assert said(first) == ([("system", "s"), ("user", "1")], "one")
    assert last.target == "three"
    assert len(last.messages) == 6
    assert (first.id, last.id) == ("t/train/1.3", "t/train/1")
    with pytest.raises(UserError, match=r"weight: 1, but only the last turn|weight: 0 on|weight"):
        shaped(tmp_path, conversation(("user", "1"), ("assistant", "one", {"weight": 0})))


def test_of_prompt_and_completion_all_answers_of_the_completion_are_learned_and_none_of_the_prompt(tmp_path):
    row = {"prompt": [USER, ANSWER, USER], "completion": [{**ANSWER, "content": "b"}, USER, {**ANSWER, "content": "c"}]}
    assert [e.target for e in shaped(tmp_path, row, ALL)] == ["b", "c"]
    row["completion"][0]["weight"] = 0
    assert [e.target for e in shaped(tmp_path, row, ALL)] == [e.target for e in shaped(tmp_path, row)] == ["c"]


def test_only_training_rows_are_learned_from_in_all_turns(tmp_path):
    row = conversation(("user", "1"), ("assistant", "one"), ("user", "2"), ("assistant", "two"))
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    (task,) = tasks_of({"t": {"path": str(tmp_path)}}, ALL).values()
    assert [e.target for e in task.train] == ["one", "two"]
    assert [e.target for e in task.test] == ["two"]
    row["messages"][-1]["weight"] = 0  # not to be said, so not to be scored
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    (task,) = tasks_of({"t": {"path": str(tmp_path)}}, ALL).values()
    assert [said(e) for e in task.test] == [([("user", "1")], "one")]
    row["messages"][1]["weight"] = 0
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match="no turn is learned"):
        list(tasks_of({"t": {"path": str(tmp_path)}}, ALL)["t"].test)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (conversation(("user", "1"), ("assistant", "a", {"weight": 0})), "messages: no turn is learned, all weights are 0"),
        (conversation(("user", "1"), ("assistant", "a", {"weight": 0.5})), "messages[1]: weight: expected 0, 1 or nothing"),
        (conversation(("user", "1"), ("assistant", "a", {"reasoning_content": "r"}), ("user", "2"), ("assistant", "b")),
         "turn 2: reasoning_content: is of a turn that is learned, of which only the content is learned"),
        (conversation(("assistant", "hello"), ("user", "2"), ("assistant", "b")),
         "messages: begins with an answer that is learned; expected something before it, or its weight 0"),
        (conversation(("user", "1"), ("assistant", " "), ("user", "2"), ("assistant", "b")),
         "an answer that is learned is empty"),
    ],
)  # fmt: skip
def test_what_all_turns_cannot_learn(tmp_path, row, message):
    with pytest.raises(UserError) as error:
        shaped(tmp_path, row, ALL)
    assert str(error.value).startswith(f"{tmp_path / 'rows.jsonl'}:1: {message}")


def test_columns_fields_and_labels(tmp_path):
    write_separated(tmp_path / "train.csv", [{"text": f"t{i}", "label": i % 3, "url": "u"} for i in range(6)])
    source = {
        "path": str(tmp_path), "columns": {"input": "text", "target": "label"}, "fields": {"instruction": "Which?"},
        "labels": ["red", "green", "blue"], "valid_from_train": 2,
    }  # fmt: skip
    (task,) = tasks_of({"t": source}, scorer={"t": "choices"}).values()
    assert task.scorer == "choices"
    assert {(e.question, e.target) for e in (*task.train, *task.valid)} == {
        (f"Which?\nt{i}", ("red", "green", "blue")[i % 3]) for i in range(6)
    }
    assert task.answers == ("red", "green", "blue")
    (fewer,) = tasks_of({"t": {**source, "without": {"label": ["0", "1"]}, "valid_from_train": None}}).values()
    assert [e.target for e in fewer.train] == ["blue", "blue"]
    for change, message in (
        (
            {"columns": {"input": "txt", "target": "label"}},
            ":2: the column 'txt' is missing or empty; did you mean 'text'?",
        ),
        ({"labels": ["red"]}, ":3: target: expected a label red or its number from 0, got '1'"),
    ):
        with pytest.raises(UserError) as error:
            list(tasks_of({"t": {**source, **change}})["t"].train)
        assert message in str(error.value)


def test_what_is_cut_off_is_the_same_whatever_the_order_and_copies_stay_together(tmp_path):
    rows = [*ROWS, *ROWS[:4]]
    found = []
    for order in (rows, rows[::-1]):
        write_json_lines(tmp_path / "train.jsonl", order)
        (task,) = tasks_of({"t": {"path": str(tmp_path), "valid_from_train": 3, "test_from_train": 4}}).values()
        parts = [{e.target for e in split} for split in (task.train, task.valid, task.test)]
        assert sum(map(len, parts)) == 12
        assert len([*task.train, *task.valid, *task.test]) == 16
        assert 3 <= len(task.valid) <= 4
        found.append(parts)
    assert found[0] == found[1]
    with pytest.raises(UserError, match="test_from_train: 20: of 16 training rows none would be left"):
        list(tasks_of({"t": {"path": str(tmp_path), "test_from_train": 20}})["t"].train)
    write_json_lines(tmp_path / "test.jsonl", ROWS)
    with pytest.raises(UserError, match="test_from_train: there is a test split; leave this out"):
        tasks_of({"t": {"path": str(tmp_path), "test_from_train": 2}})


def test_copies_leave_both_splits_that_are_cut_off(tmp_path):
    write_json_lines(tmp_path / "t.jsonl", [{"input": f"q{i % 7}", "target": "a"} for i in range(70)])
    source = {"path": str(tmp_path / "t.jsonl"), "test_from_train": 5, "valid_from_train": 5}
    (task,) = tasks_of({"t": source}).values()
    assert [len(split) for split in (task.train, task.valid, task.test)] == [50, 10, 10]
    with pytest.raises(UserError, match="valid_from_train: 51: of 70 training rows none would be left"):
        list(tasks_of({"t": {**source, "valid_from_train": 51}})["t"].train)


def test_shards_and_usual_names(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(2):
        write_json_lines(tmp_path / "data" / f"train-0000{i}-of-00002.jsonl", ROWS[6 * i : 6 * i + 6])
    write_json_lines(tmp_path / "dev.jsonl", ROWS[:1])
    write_json_lines(tmp_path / "odd.jsonl", ROWS[:2])
    (tmp_path / "train.txt").write_text("notes, no rows")
    (task,) = tasks_of({"t": {"path": str(tmp_path), "test": "odd.*"}}).values()
    assert [len(split) for split in (task.train, task.valid, task.test)] == [12, 1, 2]
    assert [e.id for e in task.train][5:7] == ["t/train/1.11", "t/train/2.1"]
    with pytest.raises(UserError, match=r"stream\.sources\.t\.test: .*nothing\*: no such file"):
        tasks_of({"t": {"path": str(tmp_path), "test": "nothing*"}})
    with pytest.raises(UserError, match=r"stream\.sources\.t\.path: .*none\.csv: no such file or folder"):
        tasks_of({"t": {"path": str(tmp_path / "none.csv")}})


LABELLED = [{"input": f"x{i}", "target": "abcde"[i % 5]} for i in range(20)]


@pytest.mark.parametrize("other", ["train.csv", "train-old.jsonl", "train.jsonl.gz", "data/train.jsonl"])
def test_a_copy_of_a_split_is_not_read_beside_it(tmp_path, other):
    (tmp_path / "data").mkdir()
    write_json_lines(tmp_path / "train.jsonl", ROWS)
    {"csv": write_separated, "gz": write_gzipped}.get(other.split(".")[-1], write_json_lines)(tmp_path / other, ROWS)
    with pytest.raises(UserError, match=r"sources\.t\.train: in .* there are .*, .*; name what is meant by `train`"):
        tasks_of({"t": {"path": str(tmp_path)}})
    (task,) = tasks_of({"t": {"path": str(tmp_path), "train": "train.jsonl"}}).values()
    assert len(task.train) == 12


@pytest.mark.parametrize(
    ("labels", "value", "target"),
    [("12345", 1, "1"), ("12345", "5", "5"), ("12345", 0, None), ("012", 1, "1"), ("ab", 1, "b"), ("123", True, "1")],
)
def test_labels_that_are_other_numbers_are_names(tmp_path, labels, value, target):
    write_json_lines(tmp_path / "t.jsonl", [{"input": "q", "target": value}])
    (task,) = tasks_of({"t": {"path": str(tmp_path / "t.jsonl"), "labels": list(labels)}}).values()
    if target is None:
        with pytest.raises(UserError, match=r"t\.jsonl:1: target: expected a label 1, 2, 3, 4, 5, got 0"):
            list(task.train)
    else:
        assert task.train[0].target == target


def test_a_row_whose_value_was_never_trained_is_not_lost(tmp_path):
    write_json_lines(tmp_path / "train.jsonl", LABELLED)
    write_json_lines(tmp_path / "test.jsonl", [*LABELLED, {"input": "x", "target": "z"}])
    source = {"path": str(tmp_path), "cut": {"number": 2}}
    with pytest.raises(UserError, match=r"sources\.s\.cut: s/test/41: no training row has 'z'"):
        list(tasks_of({"s": source})["s_1"].test)
    assert len(tasks_of({"s": {**source, "without": {"target": ["z"]}}})["s_1"].test) == 8
    chosen = {"cut": {"groups": {"one": ["a"], "two": ["b"]}}}  # a choice
    assert len(tasks_of({"s": {**source, **chosen}})["one"].test) == 4


def test_one_source_as_several_tasks(tmp_path):
    for split in ("train", "test"):
        write_json_lines(tmp_path / f"{split}.jsonl", LABELLED)
    tasks = tasks_of({"s": {"path": str(tmp_path), "cut": {"number": 2}}})
    assert list(tasks) == ["s_1", "s_2"]
    assert tasks["s_1"].answers == ("a", "b")
    assert tasks["s_2"].answers == ("c", "d", "e")
    assert len(tasks["s_2"].test) == 12
    labels = {"labels": ["e", "d", "c", "b", "a"]}
    assert tasks_of({"s": {"path": str(tmp_path), **labels, "cut": {"number": 2}}})["s_1"].answers == ("e", "d")
    write_json_lines(tmp_path / "train.jsonl", [{**row, "domain": "old"} for row in LABELLED[:15]])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.writelines(json.dumps({**row, "domain": "new"}) + "\n" for row in LABELLED[15:])
    (tmp_path / "test.jsonl").unlink()
    by = {"by": "domain", "groups": {"early": ["old"], "late": ["new"]}}
    source = {"path": str(tmp_path), "cut": by}
    assert [len(task.train) for task in tasks_of({"s": source}).values()] == [15, 5]
    by["groups"]["late"] = ["knew"]
    with pytest.raises(UserError, match=r"cut\.groups\.late: no training row has 'knew'; did you mean 'new'"):
        list(tasks_of({"s": source})["late"].train)
    one = {"columns": {"input": "input", "target": "target"}}
    with pytest.raises(UserError, match=r"cut\.number: expected at most 5, the values of target, got 7"):
        list(tasks_of({"s": {"path": str(tmp_path), **one, "cut": {"number": 7}}})["s_1"].train)
    with pytest.raises(UserError, match=r"stream\.sources\.s\.cut\.number: expected either number or groups"):
        tasks_of({"s": {"path": str(tmp_path), "cut": {}}})


def test_a_run_over_two_sources_and_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "READ", {})
    write_separated(tmp_path / "one.csv", ROWS)
    (tmp_path / "two.json").write_text(json.dumps(ROWS[:8]))
    small = {
        "model": {
            "name": "tiny-lm",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "warmup": None,
        },
        "train": {"max_steps": 2, "global_batch_size": 4},
    }
    sources = {name: {"path": str(tmp_path / file), "test_from_train": 3}
               for name, file in (("one", "one.csv"), ("two", "two.json"))}  # fmt: skip
    config = load_run({"stream": {"name": "dataset", "sources": sources}, **small})
    record = execute(config, tmp_path / "run")
    assert record["tasks"] == ["one", "two"]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"body": f"a text of {i} words"}) for i in range(9)))
    source = {"path": str(tmp_path / "texts.jsonl"), "columns": {"text": "body"}, "test_from_train": 3}
    stream = {"name": "dataset", "gives": "documents", "sources": {"t": source}}
    config = load_run({"stream": stream, "objective": {"name": "lm", "block_size": 16}, **small})
    (task,) = build_stream(config).tasks
    assert (task.scorer, len(task.train)) == ("perplexity", 6)
    with pytest.raises(UserError, match=r"objective sft: learns from conversations.* stream dataset gives documents"):
        load_run({"stream": stream, **small})


def test_files_that_are_one_object(tmp_path):
    """As Natural Instructions, and as CLINC150 has them."""
    answers = [["a", "A"], ["b"]]
    instances = [{"id": i, "input": f"q{i}", "output": found} for i, found in enumerate(answers)]
    whole = {"Definition": ["Do it."], "Domains": ["x", "y"], "Instances": instances}
    (tmp_path / "train.json").write_text(json.dumps(whole))
    columns = {"instruction": "Definition", "input": "input", "target": "output"}
    source = {"path": str(tmp_path), "rows": "Instances", "columns": columns}
    first, second = tasks_of({"t": source})["t"].train
    assert (first.question, first.target, first.extra) == ("Do it.\nq0", "a", {"references": ["A"]})
    assert (second.target, second.extra) == ("b", {})
    with pytest.raises(UserError, match=r"train\.json: Instance: expected a list of rows; did you mean 'Instances'"):
        list(tasks_of({"t": {**source, "rows": "Instance"}})["t"].train)
    path = tmp_path / "full.json"
    path.write_text(json.dumps({"train": [["q", "x"], ["r", "y"]], "val": [["s", "x"]], "oos": [["t", "oos"]]}))
    source = {"path": str(path), "train": "train", "valid": "val", "columns": {"input": "0", "target": "1"}}
    task = tasks_of({"t": source})["t"]
    assert [(e.question, e.target) for e in (*task.train, *task.valid)] == [("q", "x"), ("r", "y"), ("s", "x")]
    assert not task.test


def test_a_benchmark_as_it_was_published_and_clean(tmp_path):
    folder = tmp_path / "clone" / "one"
    folder.mkdir(parents=True)
    write_json_lines(folder / "train.jsonl", ROWS)
    for split in ("dev", "test"):
        write_json_lines(folder / f"{split}.jsonl", [{"input": f"t{i}", "target": "x"} for i in range(5)])
    digest = hashlib.sha256((folder / "test.jsonl").read_bytes()).hexdigest()
    source = {"path": "one", "valid_from_train": 4, "sha256": {"test.jsonl": digest}}
    root = str(tmp_path / "clone")
    clean = tasks_of({"t": source}, root=root)["t"]
    published = tasks_of({"t": source}, root=root, split="as_published")["t"]
    assert [len(s) for s in (clean.train, clean.valid, clean.test)] == [8, 4, 5]
    assert [len(s) for s in (published.train, published.valid, published.test)] == [12, 5, 5]
    assert overlap_lines([clean]) == []
    assert overlap_lines([published]) == ["t: 5 valid examples also stand in test"]
    settings = typed(Dataset.Config, {"sources": {"t": source}, "root": root}, "stream", "here")
    (folder / "test.jsonl").write_text("edited")
    with pytest.raises(
        UserError, match=rf"stream\.sources\.t\.sha256: .*test\.jsonl: is another file: expected {digest[:12]}…"
    ):
        Dataset(settings).version(["t"])


def test_the_best_of_several_right_answers_counts():
    example = Example(id="1", target="cat", extra={"references": ["kitten", "tom"]})
    wer = Scorer(lambda e, a: float(abs(len(e.target) - len(a))), higher_is_better=False, bounded=False)
    assert score("t", "exact", Scorer(lambda e, a: float(e.target == a)), example, "tom") == 1
    assert score("t", "exact", Scorer(lambda e, a: float(e.target == a)), example, "dog") == 0
    assert score("t", "length", wer, example, "sixlet") == 0


class Hub(list):
    """What `datasets` gives for a split."""

    def __init__(self, rows, names=None):
        super().__init__(rows)
        self.features = {"label": types.SimpleNamespace(names=names), "text": types.SimpleNamespace()}
        self._fingerprint = f"print{len(rows)}"


def test_a_data_set_of_the_hub(monkeypatch):
    asked = []
    hub = {
        "train": Hub([{"text": f"t{i}", "label": i % 2, "note": None} for i in range(4)], ["no", "yes"]),
        "validation": Hub([{"text": "v", "label": 1}], ["no", "yes"]),
    }

    def load_dataset(path, subset, revision, split):
        asked.append((path, subset, revision, split))
        return hub[split]

    fake = types.SimpleNamespace(
        load_dataset=load_dataset, get_dataset_split_names=lambda path, subset, revision: list(hub)
    )
    monkeypatch.setitem(sys.modules, "datasets", fake)
    columns = {"input": "text", "target": "label"}
    source = {"path": "org/set", "subset": "en", "columns": columns, "test": "validation", "valid": "validation"}
    task = tasks_of({"t": source})["t"]
    assert [(e.question, e.target, e.choices) for e in task.train][:2] == [
        ("t0", "no", ("no", "yes")), ("t1", "yes", ("no", "yes")),
    ]  # fmt: skip
    assert ("org/set", "en", None, "train") in asked
    builder = Dataset(typed(Dataset.Config, {"sources": {"t": source}}, "stream", "here"))
    assert builder.version(["t"]) == "print4 print1 print1"
    pinned = typed(Dataset.Config, {"sources": {"t": {**source, "revision": "a" * 40}}}, "stream", "here")
    asked.clear()
    assert Dataset(pinned).version(["t"]) == "a" * 40
    assert not asked  # a commit never changes, so nothing is asked
    with pytest.raises(UserError, match=r"stream\.sources\.t\.test: no split 'tests'"):
        tasks_of({"t": {**source, "test": "tests"}})


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"org/set .*: needs datasets; install it with: pip install 'cl-toolkit\[data\]'"
    ):
        tasks_of({"t": {"path": "org/set"}})
