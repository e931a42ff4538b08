"""Lines of data: every field is used, or refused by name with file and line."""

import json
import time

import pytest
from files import call, write_case
from tiny import tiny_config

from cl_toolkit import UserError
from cl_toolkit.benchmarks.jsonl import read_file
from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.data.facts import overlap, overlap_lines
from cl_toolkit.data.rows import Template
from cl_toolkit.data.streams import build_stream
from cl_toolkit.models.sections import Prompt
from cl_toolkit.study.cells import load_run


def prompt(**changes):
    return typed(Prompt, {**base_layer()["prompt"], **changes}, "prompt", "test")


def read(tmp_path, line, **changes):
    path = tmp_path / "f.jsonl"
    path.write_text((line if isinstance(line, str) else json.dumps(line)) + "\n", encoding="utf-8")
    (example,) = read_file(path, "f", prompt(**changes))
    return example


def turns(*pairs, **last):
    found = [{"role": role, "content": content} for role, content in pairs]
    found[-1].update(last)
    return {"messages": found}


QA = (("user", "q"), ("assistant", "a"))
LONG = "x" * 5000

REFUSED = [
    ('{"input": "q", "target": "a", "iput": "r"}', "iput: unknown field; did you mean 'input'?"),
    ('{"input": "q", "target": "a", "zzzzz": 1}', "zzzzz: unknown field; a field is used where prompt.template names it"),
    ('{"input": "q", "target": "a", "target": "b"}', "the field 'target' stands twice"),
    ('{"input": 3, "target": "a"}', "input: expected text, got 3"),
    ('{"instruction": ["q"], "target": "a"}', "instruction: expected text, got ['q']"),
    ('{"task": 1, "input": "q", "target": "a"}', "task: expected text, got 1"),
    ('{"input": "", "target": "a"}', "expected a field 'instruction' or 'input'"),
    ('{"input": "q", "target": "a", "choices": []}', "choices: expected texts that are not empty, got []"),
    ('{"input": "q", "target": "a", "choices": ["a", ""]}', "choices: expected texts that are not empty"),
    ('{"input": "q", "target": "a", "choices": ["a", "b", "a"]}', "choices: 'a' stands twice"),
    ('{"input": "q", "target": "a", "extra": Infinity}', "not JSON: Infinity is no value"),
    ('{"input": "q", "target": "a", "extra": 1e999}', "not JSON: the number 1e999 is too large"),
    ('{"input": "q", "target": "a", "extra": ' + "9" * 5000 + "}", "Exceeds the limit"),
    ('{"input": "q", "target": "a", "extra": ' + "[" * 100_000 + "]" * 100_000 + "}", "is nested too deeply"),
    ('{"input": "q", "target": "a", "history": [["a"]]}', "history: expected a list of [user, assistant] pairs"),
    ({**turns(*QA), "target": "a"}, "target: stands beside messages"),
    ({**turns(*QA), "input": "a"}, "input: stands beside messages"),
    ({**turns(*QA), "tool": []}, "tool: unknown field; did you mean 'tools'?"),
    (turns(("system", "s"), ("system", "t"), *QA), "messages: expected one system turn at most"),
    ({**turns(("system", "s"), *QA), "system": "t"}, "messages: expected one system turn at most"),
    (turns(*QA, wieght=0), "messages[1]: wieght: unknown key of a turn; did you mean 'weight'?"),
    (turns(*QA, reasoning_content="so"), "messages[1]: reasoning_content: is of the last turn"),
    (turns(*QA, weight=0.5), "messages[1]: weight: 0.5 on the answer"),
    (turns(*QA, weight=True), "messages[1]: weight: True on the answer"),
    ({"messages": [{"role": "user", "content": "q", "name": 3}, {"role": "assistant", "content": "a"}]},
     "messages[0]: name: expected text, got 3"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}, {"role": "assistant", "content": "a"}]},
     "messages[0]: content: expected text, or parts {type: text, text}, got {'type': 'text'}"),
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b", "weight": 1},
                   {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
     "messages[1]: weight: 1, but only the last turn is learned; set 0"),
    (json.dumps({"input": "q", "target": [[LONG]]}), "target: expected text that is not empty, got ['xxx"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_refused_with_file_line_and_field(tmp_path, line, message):
    with pytest.raises(UserError) as error:
        read(tmp_path, line)
    said = str(error.value)
    assert said.startswith(f"{tmp_path / 'f.jsonl'}:1: {message}")
    assert len(said) < 300 + len(str(tmp_path))
    assert "\n" not in said


def test_what_is_used(tmp_path):
    row = {"system": "be kind", "history": [["a", "b"]], "input": "q", "target": "t", "id": 7, "source": "web"}
    example = read(tmp_path, row)
    assert [(m.role, m.content) for m in example.messages] == [
        ("system", "be kind"), ("user", "a"), ("assistant", "b"), ("user", "q")]  # fmt: skip
    own = read(tmp_path, {"context": "c", "question": "q", "target": "t"}, template="{context} / {question}")
    assert own.question == "c / q"
    developer = read(tmp_path, turns(("developer", "s"), *QA))
    assert developer.messages[0].role == "system"
    weighed = read(tmp_path, {"messages": [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "b", "weight": 0, "name": None},
        {"role": "user", "content": "r"}, {"role": "assistant", "content": "a", "weight": 1}]})  # fmt: skip
    assert [m.extra for m in weighed.messages] == [{}, {}, {}]
    assert read(tmp_path, {**turns(*QA), "target": None, "input": None}).target == "a"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "names no field"),
        ("Answer!", "names no field"),
        ("{input.x}", "expected names of fields in the braces, such as {input}, got {input.x}"),
        ("{input[0]}", "got {input[0]}"),
        ("{}", "expected names of fields"),
        ("{0}", "expected names of fields"),
        ("{input", "expected '}' before end of string"),
    ],
)
def test_a_template_that_makes_no_question(template, message):
    with pytest.raises(UserError) as error:
        load_run(tiny_config(prompt={"template": template}))
    assert str(error.value).startswith("the config: prompt.template: ")
    assert message in str(error.value)
    assert Template.of("{{x}} {input!s:>3}").fields == {"input"}


def test_a_field_of_the_template_that_a_line_does_not_have(tmp_path):
    with pytest.raises(UserError, match=r"prompt.template: cannot be filled from .*f.jsonl:1: .*did you mean 'input'"):
        read(tmp_path, {"input": "q", "target": "a"}, template="{inputt}{input}")


def test_reading_stays_fast(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps({"input": f"question {i}", "target": "a"}) + "\n" for i in range(20_000)))
    started = time.process_time()
    assert len(list(read_file(path, "f", prompt()))) == 20_000
    assert time.process_time() - started < 3


def test_lines_of_train_that_also_stand_in_test_are_counted(tmp_path, monkeypatch, capsys):
    both = [{"input": f"{i}", "target": "a"} for i in range(4)]
    config = write_case(tmp_path, both, [*both[:3], {"input": "3", "target": "b"}, {"input": "9", "target": "a"}])
    stream = build_stream(load_run(config))
    assert overlap(stream.all_tasks) == {"t": 3}
    assert overlap_lines(stream.all_tasks) == ["t: 3 of 5 test examples also stand in the training data"]
    assert overlap(build_stream(load_run("quickstart")).all_tasks) == {}
    for command in ("plan", "show"):
        code, said, _ = call(monkeypatch, capsys, command, config)
        assert code == 0
        assert said.count("t: 3 of 5 test examples also stand in the training data") == 1
