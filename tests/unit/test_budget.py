"""What all methods of a comparison get as much of is kept by their steps, and what they do not is said."""

import json

import pytest
from files import call
from reported import record, replay
from tiny import RFT, tiny_config

from cl_toolkit import UserError
from cl_toolkit.config.plain_yaml import to_yaml
from cl_toolkit.report.budgets import given, uneven
from cl_toolkit.report.cautions import cautions
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.study.cells import load_run, load_study
from cl_toolkit.study.compare import compare

METHODS = {
    "sequential": {},
    "replay": {"strategies": {"replay": {"replay_fraction": 0.5}}},
    "often": {"strategies": {"replay": {"replay_fraction": 0.75}}},
    "wide": {"train": {"global_batch_size": 8}},
    "joint": {"stream": {"view": "joint"}},
    "start": {"stream": {"view": "start"}},
}


def steps(equal, methods=METHODS, **changes):
    """Method -> steps of each task, where the comparison's own settings give 12 of four examples, for two tasks."""
    train = {"max_steps": 12, "global_batch_size": 4, "learning_rate": 1e-2}
    plain = tiny_config(methods=methods, seeds=[0], train=train, budget={"equal": equal}, **changes)
    return {run.method: run.train.max_steps for run in load_study(plain).runs}


@pytest.mark.parametrize(
    ("equal", "wanted"),
    [
        (None, (12, 12, 12, 12)),
        ("steps", (12, 12, 12, 12)),
        ("new_examples", (12, 12, 12, 6)),
        ("rows", (12, 8, 5, 6)),  # 96 rows in all: 4 S + 8 S, 4 S + 16 S = 100, 16 S
        ("tokens", (12, 8, 5, 6)),
        ("passes", (12, 8, 5, 6)),
    ],
)
def test_steps_follow_from_the_budget(equal, wanted):
    found = steps(equal)
    assert tuple(found[m] for m in ("sequential", "replay", "often", "wide")) == wanted
    assert found["joint"] == found["start"] == 12  # joint takes those of both tasks


def test_passes_count_a_teacher_a_memory_and_what_comes_between_tasks():
    """Twelve steps of four rows, each three forwards, in two tasks: 288 forwards in all."""
    methods = {
        "lwf": {"strategies": ["lwf"]},  # 12 S, then 16 S
        "start": {"strategies": {"lwf": {"teacher": "start"}}},  # 16 S each
        "agem": {"strategies": {"agem": {"memory_batch_size": 4}}},  # 12 S, then 24 S
        "ewc": {"strategies": {"ewc": {"fisher_examples": 8}}},  # 24 S + 2 * 8 * 3
        "der": {"strategies": {"der": {"memory_batch_size": 4}}},  # 12 S, then 24 S
        "sure": {"strategies": {"surprise_replay": {"candidates": 36}}},  # 12 S, then 24 S, and 2 * 36
        "off": {"strategies": {"lwf": {"weight": 0.0}}},
        "joint": {"stream": {"view": "joint"}},
    }
    assert steps("passes", methods) == {
        "lwf": 10, "start": 9, "agem": 8, "ewc": 10, "der": 8, "sure": 6, "off": 12, "joint": 12
    }  # fmt: skip


def test_what_is_rehearsed_from_the_first_task_on_counts_there_too():
    stream = {"tasks": ["max", "last"], "anchors": ["sort"]}
    assert steps("rows", stream=stream)["replay"] == 6
    past = {"a": {"strategies": {"replay": {"source": "past"}}}, "b": {"strategies": {"der": {"memory_batch_size": 4}}}}
    for equal in ("rows", "passes"):  # of an anchor they keep nothing
        assert steps(equal, past, stream=stream) == {"a": 8, "b": 8}
    assert steps("passes", stream=stream)["replay"] == 6
    methods = {"lwf": {"strategies": ["lwf"]}, "off": {"strategies": {"lwf": {"weight": 0.0}}}}
    assert steps("passes", methods, stream=stream) == {"lwf": 9, "off": 12}  # 16 S each


def test_an_objective_that_uses_a_batch_twice_takes_whole_batches():
    methods = {"rft": {"objective": {**RFT, "num_iterations": 2}}}
    assert steps("new_examples", methods) == {"rft": 24}
    assert steps("steps", methods) == {"rft": 12}


@pytest.mark.parametrize(
    ("equal", "methods", "changes", "words"),
    [
        ("rows", {"a": {"train": {"max_steps": 3}}}, {}, r"methods\.a\.train\.max_steps: how long a method trains"),
        ("steps", {"a": {"train": {"num_train_epochs": 3}}}, {}, r"methods\.a\.train\.num_train_epochs: how long"),
        ("tokens", {"a": {"objective": RFT}}, {}, "how long the rows of objective rft are is not known before"),
        ("passes", {"a": {"objective": RFT}}, {}, "how long the rows of objective rft are is not known before"),
        (
            "passes",
            {"a": {"strategies": {"replay": {"source": "self"}}}},
            {},
            "what it writes or looks at between tasks",
        ),
        ("passes", {"a": {"strategies": {"ewc": {"fisher_examples": 100}}}}, {}, "leaves it 0 steps a task"),
        ("row", {"a": {}}, {}, r"budget\.equal: expected null or steps \| new_examples|did you mean 'rows'"),
        ("rows", {"a": {"train": {"global_batch_size": 999}}}, {}, "leaves it 0.048 steps a task"),
    ],
)
def test_what_cannot_be_kept_is_refused(equal, methods, changes, words):
    with pytest.raises(UserError, match=words):
        steps(equal, methods, **changes)


def test_epochs_are_refused():
    plain = tiny_config(methods={"a": {}}, seeds=[0], train={"max_steps": -1}, budget={"equal": "rows"})
    with pytest.raises(UserError, match=r"budget\.equal: rows: needs train\.max_steps"):
        load_study(plain)


def test_one_job_of_an_array_is_the_run_that_the_comparison_makes(tmp_path):
    plain = tiny_config(methods=METHODS, seeds=[0], budget={"equal": "rows"})
    (tmp_path / "my.yaml").write_text(to_yaml(plain))
    source, overrides = str(tmp_path / "my.yaml"), ["train.max_steps=9"]
    whole = {run.method: run.plain for run in load_study(source, overrides).runs}
    assert whole["replay"]["train"]["max_steps"] == 6
    assert load_run(source, overrides, "replay").plain == whole["replay"]


def test_records_and_plan_say_what_each_method_got(tmp_path, monkeypatch, capsys):
    some = {m: METHODS[m] for m in ("sequential", "replay", "joint")} | {"der": {"strategies": ["der"]}}
    some["der"] = {"strategies": {"der": {"memory_batch_size": 4}}}
    plain = tiny_config(methods=some, seeds=[0], budget={"equal": "rows"})
    plain["train"] |= {"max_steps": 12, "global_batch_size": 4}
    found, failures = compare(load_study(plain), tmp_path / "out")
    assert failures == []
    got = given(Comparison.of(found.records))
    assert {m: own["rows"] for m, own in got.items()} == dict.fromkeys(some, 96)
    assert {m: own["steps"] for m, own in got.items()} == {"sequential": 24, "replay": 16, "joint": 24, "der": 16}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "equally many rows for each method" in page
    assert "Methods are not given equally much: steps 16 (" in page
    (tmp_path / "my.yaml").write_text(to_yaml(plain))
    _, said, _ = call(monkeypatch, capsys, "plan", tmp_path / "my.yaml", "--json")
    plan = json.loads(said)
    rows = {row["run"].split("/")[0]: (row["steps"], row["new_examples"], row["rows"]) for row in plan["runs"]}
    assert rows["replay"] == rows["der"] == (16, 64, 96)
    assert rows["sequential"] == rows["joint"] == (24, 96, 96)
    assert plan["budget"][0] == "Every method takes as many steps as give it equally many rows."
    assert plan["budget"][1].startswith("Methods are not given equally much: steps 16 (replay) to 24 (sequential); new")


def test_plan_says_where_a_strategy_gets_fewer_passes_than_it_may(tmp_path, monkeypatch, capsys):
    """EWC may look at 20 examples of each task, which have twelve: 2 * 3 * 8 forwards less than its share of 288."""
    methods = {
        "sequential": {},
        "lwf": {"strategies": ["lwf"]},
        "ewc": {"strategies": {"ewc": {"fisher_examples": 20}}},
    }
    plain = tiny_config(methods=methods, seeds=[0], budget={"equal": "passes"}, train={"max_steps": 12})
    (tmp_path / "my.yaml").write_text(to_yaml(plain))
    _, said, _ = call(monkeypatch, capsys, "plan", tmp_path / "my.yaml", "--json")
    plan = json.loads(said)
    found = {row["run"].split("/")[0]: (row["steps"], row["passes"]) for row in plan["runs"]}
    assert found == {"sequential": (24, 288), "lwf": (20, 280), "ewc": (14, 14 * 12 + 2 * 3 * 12)}
    assert "passes 240 (ewc) to 288 (sequential)" in plan["budget"][1]


def test_a_wrong_search_is_refused_where_it_is_not_asked_for():
    with pytest.raises(UserError, match=r"search\.method: unknown key; did you mean 'methods'"):
        load_study(tiny_config(search={"method": {"sequential": {}}}))


def test_what_is_not_equal_is_said():
    assert uneven({}) == ""
    amounts = {"a": {"steps": 100.0, "rows": 300.0}, "b": {"steps": 104.0, "rows": 450.0}, "c": {"steps": 0, "rows": 0}}
    assert uneven(amounts) == "Methods are not given equally much: rows 300 (a) to 450 (b)."
    double = replay()
    double["cost"]["examples"] = 1920
    said = cautions(Comparison.of([record(), double]))
    assert "Methods are not given equally much: rows 960 (sequential) to 1,920 (replay)." in said
