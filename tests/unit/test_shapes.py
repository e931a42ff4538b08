"""Rows of every shape that people have, and which turns are learned."""

import json

import pytest
from tables import tasks_of

from cl_toolkit.errors import UserError


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


OTHER = {"role": "assistant", "content": "b"}
PAIRS = {
    "texts": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "turns": {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]},
    "conversations": {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
    "beside an input": {"input": "q", "chosen": "a", "rejected": "b"},
    "beside a target": {"input": "q", "target": "a", "rejected": "b"},
    "beside a conversation": {"messages": [USER, ANSWER], "rejected": "b"},
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_preference_is_its_chosen_answer_and_the_rejected_one_beside_it(tmp_path, name):
    (example,) = shaped(tmp_path, PAIRS[name])
    assert said(example) == ([("user", "q")], "a")
    assert example.extra == {"rejected": "b"}


REFUSED = {
    "one of a pair": ({"prompt": "q", "chosen": "a"}, "chosen: holds an answer that is preferred to another one"),
    "the other of a pair": ({"prompt": "q", "rejected": "a"}, "rejected: stands alone; expected a field chosen beside it"),
    "a pair of one answer": ({"prompt": "q", "chosen": "a", "rejected": "a"}, "rejected: is the chosen answer, 'a'"),
    "a pair with an empty one": ({"prompt": "q", "chosen": "a", "rejected": " "}, "rejected: expected text that is not empty"),
    "a pair of a text and turns": ({"prompt": "q", "chosen": "a", "rejected": [ANSWER]},
                                   "chosen, rejected: expected two texts, or two lists of turns that differ in the last one"),
    "a pair about two questions": ({"chosen": [USER, ANSWER], "rejected": [ANSWER, ANSWER]},
                                   "chosen, rejected: expected two texts, or two lists of turns that differ in the last one"),
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
