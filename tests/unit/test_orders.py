"""Task orders: given, reversed, drawn at random, spelled out."""

import pytest
from tiny import tiny_config

from cl_toolkit import UserError
from cl_toolkit.study.cells import load_run, load_study
from cl_toolkit.study.orders import orders_of

TASKS = ["a", "b", "c", "d"]


def made(orders, tasks=TASKS):
    return orders_of(orders, lambda: tasks, "here")


def test_what_is_asked_for_by_name():
    assert made(None) == made([]) == [None]
    assert made(["given", "reversed", ["b", "a", "c", "d"]]) == [None, ["d", "c", "b", "a"], ["b", "a", "c", "d"]]


def test_random_orders_are_others_each_and_the_same_again():
    """The three of seed 0 are written down: a version that draws others would call them the same study."""
    found = made([{"random": 3}])
    assert found == [["c", "a", "b", "d"], ["b", "a", "c", "d"], ["b", "d", "a", "c"]]
    assert made([{"random": 2}]) == found[:2]  # one more order computes only what is new
    assert made([{"random": 3, "seed": 1}]) != found
    every = made([{"random": 22}])
    assert len({tuple(order) for order in every}) == 22
    assert TASKS not in every
    assert TASKS[::-1] not in every


def test_without_need_nobody_asks_for_the_tasks():
    assert orders_of([None, ["b"]], lambda: 1 / 0, "here") == [None, ["b"]]


@pytest.mark.parametrize(
    ("orders", "words"),
    [
        (
            "reversed",
            r"here: orders: expected a list of task lists, given, reversed, and \{random: how many, seed: 0\}, got",
        ),
        (["revresed"], "orders: expected a list of task lists"),
        ([{"random": 3, "sede": 1}], "orders: expected a list of task lists"),
        ([{"random": 0}], "random: expected a whole number of 1 or more"),
        ([{"random": True}], "random: expected a whole number of 1 or more"),
        (
            [{"random": 23}],
            "random: expected at most 22, since 4 tasks have 22 orders beside",
        ),
        (["given", None], "the stream's own is given twice"),
        (["reversed", ["d", "c", "b", "a"]], "d, c, b, a is given twice"),
    ],
)
def test_what_is_no_order_is_refused(orders, words):
    with pytest.raises(UserError, match=words):
        made(orders)


def test_a_comparison_has_a_run_for_each():
    config = {**tiny_config(), "orders": ["given", "reversed"], "seeds": [0, 1]}
    study = load_study(config)
    assert [(r.order, r.stream.order) for r in study.runs] == 2 * [("given", None)] + 2 * [
        ("last+max", ("last", "max"))
    ]
    assert load_run(config, order="2").stream.order == ("last", "max")
    assert load_run(config, order="last+max").stream.order == ("last", "max")
    with pytest.raises(UserError, match="random: expected at most 0, since 2 tasks"):
        load_study({**config, "orders": [{"random": 1}]})


def test_what_the_methods_have_in_common_need_not_work_by_itself():
    """A comparison with orders asks it for the names of its tasks alone."""
    config = tiny_config(objective={"name": "on_policy", "context": "none"}, orders=["reversed"])
    study = load_study({**config, "methods": {"sdft": {"objective": {"context": "demonstration"}}}})
    assert len(study.runs) == 1
    with pytest.raises(UserError, match=r"methods\.gkd|objective\.context: none"):
        load_study({**config, "methods": {"gkd": {}}})
