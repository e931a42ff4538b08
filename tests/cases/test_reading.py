"""Data as people export it: read as it is meant, or refused with file, line and field."""

import codecs
import json

import pytest
from files import call, rows, write_case

from cl_toolkit import UserError
from cl_toolkit.api import run
from cl_toolkit.cli.show import answer_rows
from cl_toolkit.data.store import example_from_plain, example_to_plain
from cl_toolkit.data.streams import build_stream
from cl_toolkit.study.cells import load_run


def task_of(config):
    return build_stream(load_run(config)).tasks[0]


def refusal(config):
    with pytest.raises(UserError) as error:
        build_stream(load_run(config))
    assert "\n" not in str(error.value)
    return str(error.value)


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}


@pytest.mark.parametrize("content", [{"content": ""}, {"content": None}, {}])
def test_tool_calls_reach_the_template(tmp_path, content):
    turns = [
        {"role": "user", "content": "weather in Rome?"},
        {"role": "assistant", "tool_calls": [CALL], **content},
        {"role": "tool", "content": "sunny", "name": "weather", "tool_call_id": "1"},
        {"role": "assistant", "content": "It is sunny."},
    ]
    (example,) = task_of(write_case(tmp_path, [{"messages": turns}])).train
    assert [m.content for m in example.messages] == ["weather in Rome?", "", "sunny"]
    assert example.messages[1].extra == {"tool_calls": [CALL]}
    assert example.messages[2].extra == {"name": "weather", "tool_call_id": "1"}
    assert example_from_plain(json.loads(json.dumps(example_to_plain(example)))) == example


def test_a_conversation_that_ends_in_a_call_is_refused(tmp_path):
    turns = [{"role": "user", "content": "weather?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert "train.jsonl:1: messages[1]: tool_calls: is of the last turn" in refusal(
        write_case(tmp_path, [{"messages": turns}])
    )


def test_an_answer_with_weight_zero_is_refused(tmp_path):
    bad = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a bad answer", "weight": 0}]
    good = [{"role": "user", "content": "ho"}, {"role": "assistant", "content": "a good answer", "weight": 1}]
    said = refusal(write_case(tmp_path, [{"messages": good}, {"messages": bad}]))
    assert "train.jsonl:2: messages[1]: weight: 0 on the answer, which is learned; leave out the row" in said


def test_nan_is_no_text(tmp_path):
    line = '{"instruction": "translate hello", "input": NaN, "target": "bonjour"}'
    assert "train.jsonl:1: not JSON: NaN is no value; an empty field is null" in refusal(write_case(tmp_path, [line]))


def test_a_column_of_nulls_is_absent(tmp_path):
    config = write_case(tmp_path, [{"messages": None, "extra_column": None, **row} for row in rows()])
    assert [e.question for e in task_of(config).train] == [f"question {i}" for i in range(4)]


def test_half_an_emoji_is_refused_when_it_is_read(tmp_path, monkeypatch, capsys):
    config = write_case(tmp_path, [*rows(), '{"input": "say \\ud83d", "target": "a"}'])
    code, _, said = call(monkeypatch, capsys, "run", config, "--out", tmp_path / "out")
    assert code == 2
    assert "train.jsonl:5: holds half of a character" in said
    assert not (tmp_path / "out").exists()
    (whole,) = task_of(write_case(tmp_path, ['{"input": "say \\ud83d\\ude00", "target": "a"}'])).train
    assert whole.question == "say 😀"


def test_a_byte_order_mark_is_not_data(tmp_path):
    config = write_case(tmp_path)
    path = tmp_path / "data" / "t" / "train.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert task_of(config).train[0].question == "question 0"


def test_answers_with_line_separators_are_read_back(tmp_path):
    config = write_case(tmp_path, test_rows=[{"input": "one\u2028two\x85", "target": "a\u2029b"}])
    run(str(config), out=tmp_path / "out")
    (row,) = answer_rows(tmp_path / "out", None, None, 5)
    assert (row["question"], row["target"]) == ("one\u2028two\x85", "a\u2029b")
