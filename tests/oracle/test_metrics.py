"""Metrics against two matrices worked by hand (research/methods.md 12.9), and what is undefined."""

import copy
import math

import pytest

from cl_toolkit.measure.metrics import METRICS, NOT_EVALUATED, explain

B = [0.1, 0.1, 0.1]
FIRST = [B, [0.9, 0.1, 0.2], [0.7, 0.8, 0.3], [0.6, 0.7, 0.95]]
SECOND = [B, [0.5, 0.1, 0.1], [0.7, 0.8, 0.1], [0.6, 0.75, 0.9]]


def values_of(matrix):
    return explain(matrix)[0]


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("acc", 0.75),
        ("bwt", -0.20),
        ("fwt", 0.10),
        ("forgetting", 0.20),
        ("learning_accuracy", 2.65 / 3),
        ("average_incremental_accuracy", 0.80),
        ("bwt_gem", -0.4 / 3),
        ("fwt_gem", 0.2 / 3),
        ("forgetting_mammoth", 0.20),
        ("forgetting_avalanche", 0.20),
    ],
)
def test_the_first_matrix(metric, value):
    assert values_of(FIRST)[metric] == pytest.approx(value, abs=1e-12)


def test_every_metric_has_a_known_answer_above():
    (mark,) = [m for m in test_the_first_matrix.pytestmark if m.name == "parametrize"]
    assert {name for name, _ in mark.args[1]} == set(METRICS)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("forgetting", 0.075),  # (max(.5, .7) - .6 + max(.1, .8) - .75) / 2
        ("bwt", 0.025),  # (.6 - .5 + .75 - .8) / 2: task 1 improved later, then lost part of it
        ("forgetting_avalanche", -0.025),
        ("forgetting_mammoth", 0.075),
        ("acc", 0.75),
        ("learning_accuracy", 2.2 / 3),
        ("average_incremental_accuracy", (0.5 + 0.75 + 0.75) / 3),
        ("fwt", 0.0),
    ],
)
def test_the_second_matrix_tells_forgetting_from_negative_transfer(metric, value):
    assert values_of(SECOND)[metric] == pytest.approx(value, abs=1e-12)


def test_mammoths_forgetting_is_never_negative_and_chaudhrys_may_be():
    improved = [[0.0, 0.0], [0.5, 0.0], [0.8, 0.9]]
    assert values_of(improved)["forgetting"] == pytest.approx(-0.3)
    assert values_of(improved)["forgetting_mammoth"] == 0.0


def test_nothing_changes_after_learning_then_nothing_is_forgotten():
    constant = [[0.0] * 4, *([[0.3, 0.5, 0.7, 0.9]] * 4)]
    found = values_of(constant)
    assert found["bwt"] == found["forgetting"] == found["forgetting_mammoth"] == 0.0
    assert found["acc"] == found["learning_accuracy"] == pytest.approx(0.6)


def test_one_task_has_no_transfer_and_says_why():
    values, reasons = explain([[0.2], [0.9]])
    undefined = {"bwt", "fwt", "forgetting", "bwt_gem", "fwt_gem", "forgetting_mammoth", "forgetting_avalanche"}
    assert {name for name, value in values.items() if value is None} == undefined
    assert reasons == dict.fromkeys(undefined, "needs two tasks")
    assert values["acc"] == values["learning_accuracy"] == values["average_incremental_accuracy"] == 0.9


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, "", True, "0.5"])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 2), (3, 1)])
def test_a_missing_cell_raises(missing, row, column):
    matrix = copy.deepcopy(FIRST)
    matrix[row][column] = missing
    with pytest.raises(ValueError, match=f"the cell of row {row}, task {column + 1} is missing"):
        values_of(matrix)


def test_a_short_row_raises_and_is_not_padded():
    with pytest.raises(ValueError, match="row 1 has 1 cells; expected 3"):
        values_of([B, [0.9], *FIRST[2:]])
    with pytest.raises(ValueError, match="a matrix has a row before training"):
        values_of([[0.1, 0.2]])


def seen(matrix):
    """The matrix under `evaluate.tasks: seen`."""
    return [[cell if i < t else NOT_EVALUATED for i, cell in enumerate(row)] for t, row in enumerate(matrix)]


@pytest.mark.parametrize("matrix", [FIRST, SECOND])
def test_where_only_seen_tasks_were_scored_the_rest_of_the_metrics_stay(matrix):
    values, reasons = explain(seen(matrix))
    assert values["fwt"] is None
    assert values["fwt_gem"] is None
    assert reasons["fwt"] == "task 2 was not evaluated after task 1"
    assert set(reasons) == {"fwt", "fwt_gem"}
    whole = values_of(matrix)
    for name in set(METRICS) - set(reasons):
        assert values[name] == whole[name]


def test_only_the_last_row_gives_accuracy_alone():
    joint = [[NOT_EVALUATED] * 2, [NOT_EVALUATED] * 2, [0.5, 0.7]]
    values, reasons = explain(joint)
    assert {name for name, value in values.items() if value is not None} == {"acc"}
    assert values["acc"] == pytest.approx(0.6)
    assert reasons["learning_accuracy"] == "task 1 was not evaluated after task 1"


def test_without_the_row_before_training_only_forward_transfer_is_undefined():
    values, reasons = explain([[NOT_EVALUATED] * 3, *FIRST[1:]])
    assert reasons == dict.fromkeys(["fwt", "fwt_gem"], "task 2 was not evaluated before training")
    assert values["bwt"] == pytest.approx(-0.2)


def test_where_a_lower_score_is_better_forgetting_is_positive_and_the_rest_follows_the_scores():
    # research/methods.md 9: LC 34.6667, CPT 31.6667, FG 4.5
    perplexities = [[30.0, 45.0, 65.0], [20.0, 40.0, 60.0], [22.0, 30.0, 55.0], [26.0, 33.0, 45.0]]
    values, reasons = explain(perplexities, [False] * 3)
    assert reasons == {}
    assert values["acc"] == pytest.approx(104 / 3)
    assert values["learning_accuracy"] == pytest.approx(95 / 3)
    assert values["bwt"] == values["forgetting"] == values["forgetting_avalanche"] == 4.5
    assert values["fwt"] == -7.5
    assert values["forgetting_mammoth"] >= 0


def test_scores_of_different_directions_have_no_mean():
    values, reasons = explain(FIRST, [True, False, True])
    assert set(values.values()) == {None}
    assert set(reasons) == set(METRICS)
    assert reasons["acc"] == "of some tasks a higher score is better, of others a lower one"


def test_the_input_is_not_modified():
    matrix = seen(FIRST)
    before = copy.deepcopy(matrix)
    explain(matrix)
    assert matrix == before
