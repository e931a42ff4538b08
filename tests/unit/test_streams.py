"""Streams: every answer of `skills` solved a second time, JSONL in both formats, views."""

import json
from dataclasses import replace

import pytest
import torch
from pieces import ask
from tiny import tiny_run_config

from cl_toolkit import UserError
from cl_toolkit.benchmarks.jsonl import Jsonl, read_file
from cl_toolkit.benchmarks.skills import Skills, skill_names, split_of
from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import typed
from cl_toolkit.data import regimes as views
from cl_toolkit.data.facts import task_hash
from cl_toolkit.data.spread import spread
from cl_toolkit.data.streams import build_stream
from cl_toolkit.models.sections import Prompt
from cl_toolkit.types import Message, Stream, Task

PROMPT = typed(Prompt, base_layer()["prompt"], "prompt", "test")
SPLITS = ("train", "valid", "test")


def solve(name, x):
    """The skills once more, without looking at the other solutions."""
    if name == "sort":
        return "".join(d * x.count(d) for d in "0123456789")
    if name == "max":
        return next(d for d in "9876543210" if d in x)
    if name == "reverse":
        return "".join(x[i] for i in range(len(x) - 1, -1, -1))
    if name == "shift":
        return x.translate(str.maketrans("abcdefghijklmnopqrstuvwxyz", "bcdefghijklmnopqrstuvwxyza"))
    if name == "add":
        left, right = x.split("+")
        return f"{int(left) + int(right)}"
    if name == "vowels":
        return str(len([c for c in x if c in "aeiou"]))
    if name == "double":
        return "".join(f"{c}{c}" for c in x)
    if name == "swap":
        letters = list(x)
        letters[0], letters[-1] = letters[-1], letters[0]
        return "".join(letters)
    if name == "parity":
        return "".join("e" if d in "02468" else "o" for d in x)
    if name == "complement":
        return x.translate(str.maketrans("0123456789", "9876543210"))
    if name == "last":
        return x[len(x) - 1 :]
    if name == "rotate":
        return (x + x)[1 : len(x) + 1]
    raise AssertionError(f"the skill {name} has no second solution here")


def skills(**config):
    settings = {"train_size": 60, "valid_size": 20, "test_size": 30, **config}
    return Skills(Skills.Config(**settings)).tasks(skill_names())


@pytest.mark.parametrize("length", [1, 2, 5, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_answer_is_right(length, seed):
    for task in skills(length=length, seed=seed):
        for example in (*task.train, *task.valid, *task.test):
            name, text = example.question.split(" ")
            assert name == task.name
            assert example.target == solve(name, text)
            # of `add` both numbers together have so many digits
            assert len(text.replace("+", "")) == (2 if name == "add" and length == 1 else length)


def test_a_rejected_answer_is_wrong_in_one_character_and_of_the_same_kind():
    for task, plain in zip(skills(rejected=True), skills(), strict=True):
        said = {character for split in SPLITS for e in getattr(task, split) for character in e.target}
        for split in SPLITS:
            for example, without in zip(getattr(task, split), getattr(plain, split), strict=True):
                wrong = example.extra["rejected"]
                assert sum(a != b for a, b in zip(wrong, example.target, strict=True)) == 1
                assert set(wrong) <= said
                assert (example.id, example.messages, example.target) == (without.id, without.messages, without.target)
    (lonely,) = Skills(Skills.Config(length=1, train_size=1, valid_size=0, test_size=0, rejected=True)).tasks(["last"])
    assert lonely.train[0].extra["rejected"] == 2 * lonely.train[0].target


def test_there_are_eight_skills_and_more_and_sizes_are_kept():
    tasks = skills()
    assert len(tasks) >= 8
    assert len({t.name for t in tasks}) == len(tasks)
    for task in tasks:
        assert [len(task.train), len(task.valid), len(task.test)] == [60, 20, 30]
        questions = [e.question for split in SPLITS for e in getattr(task, split)]
        assert len(set(questions)) == len(questions)
        assert len({e.id for split in SPLITS for e in getattr(task, split)}) == len(questions)


def test_splits_are_disjoint_across_seeds():
    found = {split: set() for split in SPLITS}
    for seed in range(4):
        for task in skills(seed=seed, length=3):
            for split in SPLITS:
                found[split] |= {e.question for e in getattr(task, split)}
    assert not found["train"] & found["test"]
    assert not found["train"] & found["valid"]
    assert not found["valid"] & found["test"]


def test_about_a_tenth_is_valid_and_two_tenths_test():
    shares = [split_of(f"sort {i}") for i in range(20_000)]
    assert shares.count("valid") / 20_000 == pytest.approx(0.1, abs=0.01)
    assert shares.count("test") / 20_000 == pytest.approx(0.2, abs=0.01)


def test_the_seed_of_the_data_decides_and_a_task_does_not_depend_on_the_others():
    assert skills() == skills()
    assert skills() != skills(seed=1)
    builder = Skills(Skills.Config(train_size=5))
    assert builder.tasks(["max", "sort"]) == builder.tasks(["sort", "max"])[::-1]


def test_short_inputs_run_out_and_the_warm_up_may_repeat():
    (digits,) = Skills(Skills.Config(length=1, train_size=50)).tasks(["parity"])
    assert len(digits.train) + len(digits.valid) + len(digits.test) <= 10
    (again,) = Skills(Skills.Config(length=1, train_size=50, valid_size=0, test_size=0)).tasks(["parity"], repeat=True)
    assert len(again.train) == 50
    assert {split_of(e.question) for e in again.train} == {"train"}


# jsonl ------------------------------------------------------------------------------------------------------------


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n", encoding="utf-8")


def read(tmp_path, row, prompt=PROMPT):
    write(tmp_path / "f.jsonl", row)
    return list(read_file(tmp_path / "f.jsonl", "f", prompt))


def test_five_fields(tmp_path):
    row = {"task": "t", "instruction": "Größer?", "input": "1 2", "target": "ja", "choices": ["ja", "nein"]}
    (example,) = read(tmp_path, row)
    assert example.question == "Größer?\n1 2"
    assert (example.target, example.choices, example.id) == ("ja", ("ja", "nein"), "f/1")
    (listed,) = read(tmp_path, row, typed(Prompt, {**base_layer()["prompt"], "template": "{task}: {input} ({choices})"},
                                          "prompt", "test"))  # fmt: skip
    assert listed.question == "t: 1 2 (ja, nein)"
    (bare,) = read(tmp_path, {"input": "1 2", "target": "ja", "instruction": None, "choices": None})
    assert (bare.question, bare.choices) == ("1 2", None)


def test_a_conversation_is_the_same_thing(tmp_path):
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": r, "content": c} for r, c in turns], "tools": [{"name": "f"}], "choices": ["d", "e"]}
    (example,) = read(tmp_path, row)
    assert [(m.role, m.content) for m in example.messages] == turns[:-1]
    assert (example.target, example.question, example.choices) == ("d", "c", ("d", "e"))
    assert example.tools == ({"name": "f"},)
    (simple,) = read(tmp_path, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    assert simple == read(tmp_path, {"input": "q", "target": "a"})[0]


def test_odd_characters_do_not_cut_lines(tmp_path):
    target = "a\u2028b\x85c\u2029d"
    (example,) = read(tmp_path, json.dumps({"input": "q\r\nx", "target": target}, ensure_ascii=False))
    assert example.target == target
    (tmp_path / "crlf.jsonl").write_bytes(b'{"input": "a", "target": "b"}\r\n\r\n{"input": "c", "target": "d"}\r\n')
    assert [e.id for e in read_file(tmp_path / "crlf.jsonl", "f", PROMPT)] == ["f/1", "f/3"]


def test_tasks_of_a_folder(tmp_path):
    for name in ("b", "a"):
        for split, n in (("train", 3), ("test", 2)):
            rows = [{"input": f"{i}", "target": "x", "choices": ["x", "y"]} for i in range(n)]
            write(tmp_path / name / f"{split}.jsonl", *rows)
    (tmp_path / "no task").mkdir()
    builder = Jsonl(Jsonl.Config(path=str(tmp_path), scorer={"a": "choices"}))
    assert builder.names() == ["a", "b"]
    b, a = builder.tasks(["b", "a"], PROMPT)
    assert (a.scorer, b.scorer) == ("choices", "exact_match")
    assert [len(a.train), len(a.valid), len(a.test)] == [3, 0, 2]


# views ------------------------------------------------------------------------------------------------------------

TASKS = [Task(name=n, train=tuple(ask(f"{n}{i}") for i in range(4)), test=(ask(n),)) for n in "abc"]
STREAM = Stream.of("s", TASKS, [Task(name="anchor", train=(), test=(ask("x"),))])


def ids(task):
    return [e.id for e in task.train]


def test_joint_trains_once_on_the_union_and_fills_the_last_row():
    joint = views.joint(STREAM)
    (stage,) = joint.stages
    assert ids(stage.task) == [f"{n}{i}" for n in "abc" for i in range(4)]
    assert (stage.row, stage.scored, stage.past, stage.learned) == (3, (0, 1, 2), (), None)
    assert (stage.made_of, stage.tasks_at_once) == (("a", "b", "c"), 3)
    assert (joint.tasks, joint.anchors) == (STREAM.tasks, STREAM.anchors)


def test_cumulative_grows():
    cumulative = views.cumulative(STREAM)
    assert [len(s.task.train) for s in cumulative.stages] == [4, 8, 12]
    assert ids(cumulative.stages[1].task) == ids(TASKS[0]) + ids(TASKS[1])
    assert [len(t.train) for t in cumulative.tasks] == [4, 4, 4]
    assert [s.row for s in cumulative.stages] == [1, 2, 3]
    assert [s.past for s in cumulative.stages] == [(), (0,), (0, 1)]


def test_independent_starts_anew_and_start_never_trains():
    independent = views.independent(STREAM)
    assert [(s.fresh, s.scored, s.past, s.learned) for s in independent.stages] == [
        (True, (i,), (), None) for i in range(3)
    ]
    assert [independent.position(k) for k in range(3)] == [0, 0, 0]
    assert [STREAM.position(k) for k in range(3)] == [0, 1, 2]
    assert views.start(STREAM).stages == ()
    assert views.start(STREAM).tasks == STREAM.tasks


def test_what_a_row_asks_for_and_allows():
    assert [STREAM.scored(row, True) for row in range(4)] == [(), (0,), (0, 1), (0, 1, 2)]
    assert STREAM.scored(0, False) == STREAM.scored(2, False) == (0, 1, 2)
    assert views.start(STREAM).scored(0, True) == (0, 1, 2)  # what is never trained has seen nothing and is asked all
    assert views.independent(STREAM).scored(2, True) == (1,)
    named = [replace(t, train=tuple(replace(e, choices=(t.name, "x")) for e in t.train)) for t in TASKS]
    classes = Stream.of("s", named, class_incremental=True)
    assert [classes.allowed(row) for row in (1, 2)] == [("a", "x"), ("a", "x", "b")]
    assert classes.allowed(0) == classes.classes == ("a", "x", "b", "c")
    assert classes.scored(1, False) == (0,)
    assert STREAM.allowed(1) is None


def test_tasks_with_different_objectives_are_not_learned_at_once():
    tasks = [TASKS[0], replace(TASKS[1], objective={"name": "other"})]
    with pytest.raises(UserError, match="a and b have different objectives"):
        views.joint(Stream.of("s", tasks))


def test_order_and_limit():
    assert [t.name for t in views.order(STREAM, ["c", "a", "b"]).tasks] == ["c", "a", "b"]
    for names, message in (("ab", "expected each of a, b, c once"), ("abd", "unknown task 'd'"), ("abb", "once")):
        with pytest.raises(UserError, match=f"stream.order: .*{message}"):
            views.order(STREAM, list(names))
    limited = views.limit(STREAM, train=2, test=0)
    assert [ids(t) for t in limited.tasks] == [["a0", "a3"], ["b0", "b3"], ["c0", "c3"]]
    assert limited.tasks[0].test == ()
    assert views.limit(STREAM) == STREAM


def test_a_limit_takes_of_the_whole_and_of_every_class():
    for count in range(1, 40):
        for limit in range(1, count + 3):
            found = spread(tuple(range(count)), limit)
            assert len(found) == min(limit, count)
            assert found == tuple(sorted(set(found)))
            assert spread(found, limit) == found
    assert spread((1, 2), None) == (1, 2)
    sorted_by_class, turns = tuple("a" * 50 + "b" * 50), tuple("ab" * 50)
    for file in (sorted_by_class, turns):
        for limit in (10, 20, 25, 50):
            assert 0.3 <= spread(file, limit).count("a") / limit <= 0.7


@pytest.mark.parametrize("view", views.VIEWS)
def test_a_view_of_a_config_is_that_view(view):
    stream = build_stream(tiny_run_config(stream={"view": view, "order": ["last", "max"]}))
    assert stream.regime.name == view
    assert [t.name for t in stream.tasks] == ["last", "max"]


def test_the_hash_of_the_data_changes_with_the_data():
    task, example = TASKS[0], TASKS[0].train[0]

    def with_first(**changes):
        return replace(task, train=(replace(example, **changes), *task.train[1:]))

    others = [
        replace(task, scorer="numeric"),
        replace(task, train=task.train[::-1]),
        replace(task, valid=task.test, test=task.valid),
        with_first(target="other"),
        with_first(choices=("a", "b")),
        with_first(choices=("b", "a")),
        with_first(tools=({"name": "f"},)),
        with_first(tools=({"name": "g"},)),
        with_first(text="plain"),
        with_first(y=3),
        with_first(x=torch.ones(2)),
        with_first(x=torch.zeros(2)),
        with_first(extra={"level": 1}),
        with_first(extra={"level": 2}),
        with_first(messages=(Message(role="user", content="q", extra={"name": "ann"}),)),
        with_first(messages=(Message(role="user", content="q"),)),
        with_first(messages=(Message(role="system", content="q"),)),
    ]
    hashes = [task_hash(t) for t in (task, *others)]
    assert len(set(hashes)) == len(hashes)
    assert task_hash(replace(task, name="other")) == hashes[0]  # its name stands beside it
