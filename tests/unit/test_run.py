"""One run: anchors, views, costs, rows that are left out by plan."""

import json

import pytest
from tiny import RFT, tiny_run_config, trajectory

from cl_toolkit import UserError
from cl_toolkit.measure.exam import Exam
from cl_toolkit.measure.metrics import NOT_EVALUATED
from cl_toolkit.runs.run import execute


def test_anchors_are_scored_in_every_row_and_rehearsed_from_the_first_task_on(tmp_path):
    stream = {"tasks": ["max", "last"], "anchors": ["sort"]}
    run = trajectory(tmp_path, stream=stream, strategies={"replay": {}})
    assert run.record["anchors"] == ["sort"]
    assert all(isinstance(row[0], float) for row in run.record["anchor_matrix"])
    assert len(run.record["anchor_matrix"]) == 3
    assert {index for index, _ in run.run.strategy.store.items} == {-1, 0, 1}
    # four new examples and four rehearsed ones in each of eight steps: nothing was learned before the anchor counted
    assert run.record["cost"]["examples"] == 8 * (4 + 4)


def test_seen_leaves_future_tasks_out_by_plan_and_says_why_a_metric_is_undefined(tmp_path):
    record = trajectory(tmp_path, evaluate={"tasks": "seen"}).record
    assert record["matrix"][0] == [NOT_EVALUATED] * 2
    assert record["matrix"][1][1] == NOT_EVALUATED
    assert record["metrics"]["fwt"] is None
    assert "task 2 was not evaluated after task 1" in record["undefined"]["fwt"]
    assert record["metrics"]["bwt"] is not None
    assert record["metrics"]["forgetting"] is not None


def test_joint_takes_the_steps_of_the_whole_stream_and_fills_the_last_row(tmp_path):
    record = trajectory(tmp_path, stream={"view": "joint"}).record
    assert record["cost"]["steps"] == 8
    assert record["matrix"][1] == [NOT_EVALUATED] * 2
    assert record["metrics"]["acc"] is not None
    assert record["undefined"]["bwt"] == "all tasks were learned at once"


def test_independent_starts_each_task_from_the_start_model(tmp_path):
    both = trajectory(tmp_path / "a", stream={"view": "independent"}).record
    alone = trajectory(tmp_path / "b", stream={"tasks": ["max"]}).record
    assert both["matrix"][1][0] == alone["matrix"][1][0]
    second = [row["terms"] for row in both["losses"] if row["task"] == "last"]
    sequential = trajectory(tmp_path / "c").record
    assert second != [row["terms"] for row in sequential["losses"] if row["task"] == "last"]
    assert both["metrics"]["learning_accuracy"] is not None
    assert both["metrics"]["acc"] is None


def test_start_scores_and_never_trains(tmp_path):
    record = trajectory(tmp_path, stream={"view": "start"}).record
    assert record["cost"]["steps"] == 0
    assert record["matrix"][0] == record["matrix"][1] == record["matrix"][2]
    assert record["metrics"]["bwt"] == 0.0


def test_cumulative_learns_a_task_together_with_those_before(tmp_path):
    record = trajectory(tmp_path, stream={"view": "cumulative"}, train={"max_steps": -1}).record
    assert record["cost"]["examples"] == 12 + 24
    assert record["metrics"]["bwt"] is not None


def test_costs_are_measured(tmp_path):
    plain = trajectory(tmp_path / "a").record["cost"]
    assert (plain["steps"], plain["examples"], plain["new_examples"]) == (8, 32, 32)
    assert plain["extra_forwards"] == plain["extra_backwards"] == plain["stored_examples"] == 0
    replay = trajectory(tmp_path / "b", strategies={"replay": {"buffer_size": 7}}).record["cost"]
    assert (replay["examples"], replay["new_examples"]) == (32 + 16, 32)
    der = trajectory(tmp_path / "der", strategies={"der": {"memory_batch_size": 4}}).record["cost"]
    assert (der["examples"], der["new_examples"]) == (
        32 + 16,
        32,
    )  # logits of four rows in each step of the second task
    assert replay["stored_examples"] == 7
    assert replay["stored_bytes"] > 0
    rft = trajectory(tmp_path / "c", objective=RFT).record["cost"]
    assert (rft["examples"], rft["new_examples"], rft["rollouts"]) == (32, 32, 32 * 3)
    # per step the rollout of at least one token and at most four, and one forward by the reference
    assert 8 * 2 <= rft["extra_forwards"] <= 8 * 5
    assert rft["extra_parameters"] == rft["trainable_parameters"]


def test_rollouts_used_twice_are_two_steps(tmp_path):
    record = trajectory(tmp_path, objective={**RFT, "num_iterations": 2}).record
    assert record["cost"]["steps"] == 8
    assert [row["step"] for row in record["losses"] if row["task"] == "max"] == [1, 2, 3, 4]
    assert record["cost"]["examples"] == 4 * 4
    assert record["cost"]["rollouts"] == 4 * 4 * 3  # each counts once


def test_answers_are_kept_for_every_row(tmp_path):
    record = trajectory(tmp_path).record
    for row in range(3):
        lines = [json.loads(line) for line in (tmp_path / "answers" / f"row-{row}.jsonl").read_text().splitlines()]
        assert len(lines) == 12
        scores = [line["score"] for line in lines if line["task"] == "max"]
        assert sum(scores) / 6 == pytest.approx(record["matrix"][row][0])


def test_a_folder_with_another_config_is_refused_and_the_same_one_is_returned(tmp_path):
    first = execute(tiny_run_config(), tmp_path)
    before = (tmp_path / "record.json").stat().st_mtime_ns
    assert execute(tiny_run_config(), tmp_path) == first
    assert (tmp_path / "record.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"train.learning_rate: 0.01 there, 0.02 here"):
        execute(tiny_run_config(train={"learning_rate": 2e-2}), tmp_path)


def test_a_rehearsed_example_is_scored_by_the_scorer_of_its_own_task(tmp_path):
    run = trajectory(tmp_path, strategies={"replay": {}}, objective=RFT).run
    first, second = run.stream.tasks
    wrong = type(first)(name=second.name, train=second.train, test=second.test, scorer="numeric")
    run.stream = type(run.stream).of("two scorers", [first, wrong])
    run.exams[wrong.name] = Exam.of(wrong, run.config.evaluate)
    score = run.view(wrong, 1, run.objective).score
    assert score(first.train[0], "a") == 0.0  # an odd byte, by the first task's scorer
    assert score(first.train[0], "b") == 1.0
    assert score(wrong.train[0], "b") == 0.0


def test_a_loss_that_is_no_number_ends_the_run_with_the_place(tmp_path):
    config = tiny_run_config(train={"learning_rate": 1e30, "max_grad_norm": 0.0})
    with pytest.raises(UserError, match=r"task max: step [234]: the loss term sft is nan"):
        execute(config, tmp_path)
