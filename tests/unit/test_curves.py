"""Forgetting curves: when points are taken, and how lags are counted."""

from itertools import pairwise

import pytest
from tiny import stopped_and_the_same, trajectory

import cl_toolkit as cl
from cl_toolkit import UserError
from cl_toolkit.measure.probes.curves import is_due
from cl_toolkit.models.requests import Logprobs

DRIFT = {"probes": {"drift": {}}}
GRID = [1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200, 300, 500, 800, 1200, 2000, 3000, 5000, 8000, 12000]


def test_the_log_spaced_grid():
    assert [lag for lag in range(-5, 12_001) if is_due(lag, "log_spaced", 50)] == GRID
    ratios = [b / a for a, b in pairwise(GRID[2:])]
    assert 1.4 < min(ratios) <= max(ratios) < 1.7, "about the same distance on a log axis"


def test_the_linear_grid_and_off():
    assert [lag for lag in range(-5, 20) if is_due(lag, "linear", 5)] == [5, 10, 15]
    assert not any(is_due(lag, "off", 1) for lag in range(20))


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Three tasks of six steps of four examples each."""
    return trajectory(
        tmp_path_factory.mktemp("run"),
        stream={"tasks": ["max", "last", "sort"]},
        train={"max_steps": 6},
        evaluate={"forgetting_curve": {"schedule": "log_spaced", "examples": 4}},
    ).record


def points(record, scored):
    return [row for row in record["probes"]["curves"] if row["scored"] == scored]


def test_lags_are_steps_since_the_tasks_own_end(record):
    assert [(r["lag"], r["step"], r["trained"]) for r in points(record, "max")] == [
        (0, 6, "max"),
        *((lag, 6 + lag, "last") for lag in (1, 2, 3, 5)),
        *((lag, 6 + lag, "sort") for lag in (8, 12)),
    ]
    assert [(r["lag"], r["step"]) for r in points(record, "last")] == [(lag, 12 + lag) for lag in (0, 1, 2, 3, 5)]
    assert [(r["lag"], r["trained"]) for r in points(record, "sort")] == [(0, "sort")]


def test_examples_seen_and_subset(record):
    for row in record["probes"]["curves"]:
        assert row["examples_seen"] == 4 * row["step"]
        assert row["tokens_seen"] == 2 * row["examples_seen"] or row["trained"] == "sort", "a letter and its end mark"
        assert row["n"] == 4
        assert 0 <= row["value"] <= 1


def test_the_last_point_agrees_with_the_matrix(tmp_path):
    """All six test examples, and a point at the very end of a task: it is the cell of the matrix."""
    curve = {"schedule": "linear", "every": 4, "examples": 6}
    record = trajectory(tmp_path, evaluate={"forgetting_curve": curve}).record  # two tasks of four steps
    (start, end) = points(record, "max")
    assert (start["lag"], end["lag"]) == (0, 4)
    assert start["value"] == record["matrix"][1][0]
    assert end["value"] == record["matrix"][2][0]


def test_the_loss_beside_the_score(tmp_path):
    """At a task's own end on all its test examples it is the mean of their targets' negative log-likelihoods; it changes
    nothing else, and a stopped run has the same points."""
    curve = {"schedule": "linear", "every": 2, "examples": 6, "loss": True}
    again = stopped_and_the_same(tmp_path, evaluate={"forgetting_curve": curve})
    plain = trajectory(tmp_path / "plain", evaluate={"forgetting_curve": {**curve, "loss": False}}).record
    rows = again.record["probes"]["curves"]
    assert [{k: v for k, v in row.items() if k != "loss"} for row in rows] == plain["probes"]["curves"]
    assert [row["tokens_seen"] for row in rows] == sorted(row["tokens_seen"] for row in rows)
    assert rows[-1]["tokens_seen"] == again.record["cost"]["tokens"]
    run, last = again.run, next(row for row in rows if row["scored"] == "last")
    replies = run.answers(run.model, [Logprobs(e) for e in run.exams["last"].examples])
    assert last["loss"] == pytest.approx(-sum(sum(r.logprobs) for r in replies) / sum(len(r.logprobs) for r in replies))


def test_a_loss_needs_a_model_with_outputs(tmp_path):
    config = {
        "stream": {"name": "digits", "tasks": ["digits_0_1", "digits_2_3"]},
        "model": {"name": "mlp", "hidden_size": 8},
        "train": {"max_steps": 2},
        "evaluate": {"forgetting_curve": {"schedule": "linear", "every": 2, "examples": 4, "loss": True}},
    }
    found = cl.run(config, out=tmp_path / "a")["probes"]["curves"]
    assert all(row["loss"] > 0 for row in found)
    supcon = {"name": "supcon", "projection_size": 8, "hidden_size": 16}
    for evaluate, key in (({"forgetting_curve": {"loss": True}}, "forgetting_curve.loss"), (DRIFT, "probes.drift")):
        words = rf"evaluate.{key}: needs a model that gives outputs, model mlp under objective supcon gives classes and hidden"
        with pytest.raises(UserError, match=words):
            cl.run(config | {"objective": supcon, "evaluate": evaluate}, out=tmp_path / "b")


@pytest.mark.parametrize(("view", "scored"), [("joint", 0), ("independent", 0), ("start", 0), ("cumulative", 3)])
def test_curves_of_views(view, scored, tmp_path):
    curve = {"schedule": "linear", "every": 4, "examples": 2}
    record = trajectory(tmp_path, stream={"view": view}, evaluate={"forgetting_curve": curve}).record
    assert len(record["probes"]["curves"]) == scored


def test_curves_are_not_a_cost_of_the_method(tmp_path):
    on = trajectory(tmp_path / "a", evaluate={"forgetting_curve": {"schedule": "linear", "every": 1, "examples": 2}})
    off = trajectory(tmp_path / "b", evaluate={"forgetting_curve": {"schedule": "off"}})
    for key in ("steps", "examples", "tokens", "extra_forwards", "extra_backwards"):
        assert on.record["cost"][key] == off.record["cost"][key]
    assert on.record["cost"]["compute_seconds"]["curves"] > 0
    assert on.record["cost"]["wall_seconds"]["curves"] > 0


def test_an_objective_with_two_updates_per_rollout_counts_optimizer_steps(tmp_path):
    rft = {"name": "rft", "num_generations": 3, "max_completion_length": 4, "num_iterations": 2}
    curve = {"schedule": "log_spaced", "examples": 2}
    record = trajectory(tmp_path, objective=rft, evaluate={"forgetting_curve": curve}).record
    assert record["cost"]["steps"] == 8  # two tasks, two batches, two updates
    assert record["cost"]["examples"] == 2 * 2 * 4
    assert record["cost"]["rollouts"] == 2 * 2 * 4 * 3
    assert [r["step"] for r in record["losses"]] == [1, 2, 3, 4] * 2
    assert [r["lag"] for r in points(record, "max")] == [0, 1, 2, 3]
