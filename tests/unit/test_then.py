"""A stream of several stages, each with an objective of its own."""

import pytest
from tiny import ANCHOR, RFT, tiny_config

import cl_toolkit as cl
from cl_toolkit import UserError
from cl_toolkit.runs.record import comparable

EASY = "cl_toolkit.check.runs:EasySkills"
SIZES = {"length": 3, "train_size": 12, "valid_size": 4, "test_size": 6}
THEN = {"name": EASY, "tasks": ["sort"], "objective": RFT, **SIZES}


def config(then=THEN, **changes):
    changes["stream"] = {"tasks": ["max", "last"], "then": [then], **changes.get("stream", {})}
    return tiny_config(**changes)


def test_each_stage_is_learned_by_its_own_objective(tmp_path):
    record = cl.run(config(strategies={"replay": {}, "ewc": {}}), out=tmp_path)
    assert record["tasks"] == ["max", "last", "sort"]
    terms = {row["task"]: set(row["terms"]) for row in record["losses"]}
    assert "sft" in terms["max"] & terms["last"]
    assert "rft" in terms["sort"]
    assert "sft" not in terms["sort"]
    assert [stage["objective"] for stage in record["stages"]] == [None, None, "rft"]
    assert record["cost"]["rollouts"] > 0
    assert record["matrix"][3][0] != "not_evaluated"


def test_with_one_objective_it_is_the_stream_of_all_tasks(tmp_path):
    then = {k: v for k, v in THEN.items() if k != "objective"}
    joined = cl.run(config(then, strategies={"replay": {}}), out=tmp_path / "a")
    plain = cl.run(
        tiny_config(stream={"tasks": ["max", "last", "sort"]}, strategies={"replay": {}}), out=tmp_path / "b"
    )
    for key in ("matrix", "losses", "cost", "probes", "adapters"):
        assert comparable(joined)[key] == comparable(plain)[key]


def test_a_stream_that_was_read_before_has_no_more_tasks_than_it_has():
    """What is read is kept for the whole process; the stages of one config were in all others of the same stream."""
    from cl_toolkit.data.streams import build_stream
    from cl_toolkit.study.cells import load_run

    alone = {"name": "skills", **SIZES, "tasks": ["max"]}
    then = {"name": "skills", **SIZES, "tasks": ["last"]}
    both, one = (load_run(tiny_config(stream=stream)) for stream in (alone | {"then": [then]}, alone | {"then": []}))
    for config_, names in ((both, ["max", "last"]), (one, ["max"]), (both, ["max", "last"])):
        assert [task.name for task in build_stream(config_).tasks] == names


@pytest.mark.parametrize("strategies", [{"replay": {"source": "general"}}, {"guard": {}}])
def test_anchors_of_the_first_stream_are_there_in_the_later_ones(strategies):
    from cl_toolkit.study.cells import load_run

    then = {k: v for k, v in THEN.items() if k != "objective"}
    assert load_run(config(then, strategies=strategies, stream={"anchors": [ANCHOR]})).then
    with pytest.raises(UserError, match=r"^the config: stream\.anchors: .* expected one at least"):
        load_run(config(then, strategies=strategies))


def test_it_goes_on_after_a_stop_and_takes_orders(tmp_path):
    from tiny import stop_after_a_task

    from cl_toolkit.runs.run import Run
    from cl_toolkit.study.cells import load_run

    changed = config(stream={"order": ["sort", "max", "last"]})
    whole = cl.run(changed, out=tmp_path / "whole")
    stop_after_a_task(Run(load_run(changed), tmp_path / "stopped", None))
    again = cl.run(changed, out=tmp_path / "stopped")
    a, b = comparable(whole), comparable(again)
    assert {k: v for k, v in a.items() if k != "checksum"} == {k: v for k, v in b.items() if k != "checksum"}
    assert whole["tasks"] == ["sort", "max", "last"]
    assert whole["losses"][0]["terms"].keys() == {"rft"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"then": {**THEN, "tasks": ["last"]}}, "stream.then: two of the streams have a task 'last'"),
        (
            {"then": {**THEN, "tasks": ["sorrt"]}},
            "stream.then[0]: stream.tasks: unknown task 'sorrt'; did you mean 'sort'",
        ),
        (
            {"then": {**THEN, "objective": "sfft"}},
            "stream.then[0].objective: unknown objective 'sfft'; did you mean 'sft'",
        ),
        ({"then": {**THEN, "lenght": 3}}, "stream.then[0].lenght: unknown key; did you mean 'length'"),
        (
            {"then": {"name": "digits"}},
            "stream.then[0]: stream.name: digits gives arrays, model tiny-lm takes conversations",
        ),
        ({"then": {**THEN, "objective": {"name": "supcon"}}}, "objectives sft and supcon cannot follow each other"),
        (
            {"strategies": {"der": {}}},
            "stream.then[0]: strategies.der: needs true_targets, which objective rft does not give",
        ),
        ({"stream": {"view": "joint"}}, "max and sort have different objectives"),
        ({"stream": {"order": ["max", "last"]}}, "stream.order: expected each of max, last, sort once"),
    ],
)
def test_what_cannot_follow_is_refused(changes, words, tmp_path):
    with pytest.raises(UserError) as error:
        cl.run(config(**changes), out=tmp_path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
