"""What `plan` says that a comparison can tell, against tables and a simulation."""

import numpy as np
import pytest
from reported import record, replay, study
from scipy import stats
from tiny import RFT, tiny_config

from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.design import claimed, found, made, told
from cl_toolkit.report.estimate import Estimate, holm
from cl_toolkit.study.cells import load_study


def lines(**changes):
    methods = {"a": {}, "b": {"train": {"learning_rate": 1e-3}}, "c": {"train": {"learning_rate": 1e-4}}}
    return list(told(load_study({**tiny_config(), "methods": methods, **changes}), 2))


def test_what_is_claimed_is_the_table_of_t():
    assert claimed(3, 1) == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert claimed(10, 5) == pytest.approx(3.250 / 10**0.5, rel=1e-3)  # 1 % two-sided


@pytest.mark.parametrize(("n", "comparisons"), [(3, 1), (6, 4)])
def test_what_is_found_is_found_that_often_by_the_reports_own_estimate(n, comparisons):
    """20,000 studies; of the first in Holm's order, whose p is multiplied by all of them."""
    draws = np.random.default_rng(0).normal(found(n, comparisons), 1, (20_000, n))
    spread = draws.std(1, ddof=1) / n**0.5
    p = 2 * stats.t.sf(draws.mean(1) / spread, n - 1)
    assert (p * comparisons <= 0.05).mean() == pytest.approx(0.8, abs=0.01)
    some = Estimate.of(list(draws[0]))
    assert some.p == pytest.approx(2 * stats.t.sf(abs(draws[0].mean()) / spread[0], n - 1))
    assert holm({"first": 0.01, **dict.fromkeys(range(comparisons - 1), 1.0)})["first"] == pytest.approx(
        0.01 * comparisons
    )


def test_as_many_comparisons_are_counted_as_the_page_of_such_a_study_makes():
    methods = {
        "sequential": {},
        "replay": {"strategies": ["replay"]},
        "rft": {"objective": RFT},
        "joint": {"stream": {"view": "joint"}},
    }
    config = {**tiny_config(), "methods": methods, "seeds": [0, 1, 2]}
    assert made(load_study(config), 3) == Comparison.of(study()).size == 7
    one_task = [m(seed=s, tasks=("sort",)) for s in range(3) for m in (record, replay)]
    two = {name: methods[name] for name in ("sequential", "replay")}
    assert made(load_study(config | {"methods": two}), 1) == Comparison.of(one_task).size == 1
    controls = [*one_task, *(r | {"method": "other"} for r in one_task[::2])]
    assert made(load_study(config | {"methods": two | {"other": {}}}), 1) == Comparison.of(controls).size == 2


def test_seeds_of_one_order_are_advised_to_become_orders():
    said = lines(seeds=[0, 1, 2])
    assert said[0] == "3 methods x 1 order x 3 seeds"
    assert said[1].startswith(
        "units are 3 seeds of one order; with 5 comparisons on the page a difference is claimed from 5.7 spreads"
    )
    assert "orders: [given, {random: 2}]" in said[2]


def test_orders_are_the_units_and_two_of_anything_are_too_few():
    said = lines(seeds=[0, 1, 2], orders=["given", "reversed"])
    assert said == [
        "3 methods x 2 orders x 3 seeds",
        "no verdict: 2 orders, and it takes 3 units to tell a difference from chance",
    ]
    assert lines(seeds=[0])[1].startswith("no verdict: 1 seeds of one order")


def test_one_method_is_compared_with_nothing():
    assert list(told(load_study({**tiny_config(), "methods": {"a": {}}}), 2)) == ["1 method x 1 order x 1 seed"]
