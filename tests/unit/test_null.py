"""How often the report claims a difference where there is none, and how often it finds one that is there.

Records of simulated studies go through the report's own sentences. The short form runs with the suite; `make null` runs 1,000
of each and prints the table. Bounds leave room for the simulation's own error: at a true 5 % the standard error of 1,000 is
0.7 %.
"""

import pytest
from longer import long_but
from nulls import Design, power, share_with_a_claim

ONE = {
    "3 seeds, one order": Design(),
    "5 seeds, one order": Design(seeds=5),
    "3 orders x 3 seeds, interaction as large as the seeds'": Design(orders=3, interaction=1),
    "5 orders x 2 seeds, same": Design(orders=5, seeds=2, interaction=1),
    "2 orders x 5 seeds, same": Design(orders=2, seeds=5, interaction=1),
    "3 orders x 3 seeds, interaction twice as large": Design(orders=3, interaction=2),
    "2 seeds, noise of 100 answers alone": Design(seeds=2, spread=0.0, examples=100, answers=True),
    "3 seeds, noise of 100 answers alone": Design(spread=0.0, examples=100, answers=True),
    "3 seeds, 100 answers, spread 0.003": Design(spread=0.003, examples=100),
}
FIFTEEN = {
    "15 methods, 3 seeds": Design(methods=15),
    "15 methods, 5 seeds": Design(methods=15, seeds=5),
    "15 methods, 3 orders x 3 seeds, interaction": Design(methods=15, orders=3, interaction=1),
}
FOUND = {
    "1 method, 3 seeds": Design(),
    "1 method, 5 seeds": Design(seeds=5),
    "1 method, 10 seeds": Design(seeds=10),
    "1 method, 3 orders x 3 seeds, interaction": Design(orders=3, interaction=1),
    "1 method, 5 orders x 2 seeds, interaction": Design(orders=5, seeds=2, interaction=1),
    "5 methods, 3 seeds": Design(methods=5),
    "5 methods, 5 seeds": Design(methods=5, seeds=5),
    "15 methods, 3 seeds": Design(methods=15),
    "15 methods, 5 seeds": Design(methods=15, seeds=5),
}


def of_size(design: Design, effect: float) -> Design:
    return Design(**{**vars(design), "effect": effect})


OFTEN = ("3 seeds, one order", "5 orders x 2 seeds, same", "3 seeds, 100 answers, spread 0.003")


@pytest.mark.parametrize("name", long_but(OFTEN, ONE))
def test_a_null_comparison_hardly_ever_claims_a_difference(name):
    assert share_with_a_claim(ONE[name], 120, seed=11) <= 0.09  # at a true 5 % one drawing in 25 lies above


def test_a_null_report_of_fifteen_methods_hardly_ever_claims_a_difference():
    assert share_with_a_claim(FIFTEEN["15 methods, 3 seeds"], 30, seed=11) <= 0.14


def test_two_runs_never_give_a_verdict_and_a_large_difference_is_found():
    assert power(of_size(Design(seeds=2), 50.0), 20, seed=12) == 0
    assert power(of_size(Design(seeds=5), 4.0), 20, seed=12) >= 0.9
    assert power(of_size(Design(orders=5, seeds=2), 6.0), 20, seed=12) >= 0.9


@pytest.mark.null
def test_the_level_in_full():
    worst = {}
    for kind, designs in (("one method", ONE), ("fifteen methods", FIFTEEN)):
        for name, design in designs.items():
            share = share_with_a_claim(design, 1000, seed=1)
            worst[kind] = max(share, worst.get(kind, 0.0))
            print(f"\n{name:60} {100 * share:5.1f} % of 1000 reports claim a difference", end="", flush=True)
    assert worst["one method"] <= 0.07
    assert worst["fifteen methods"] <= 0.08


@pytest.mark.null
def test_the_power_in_full():
    print(f"\n{'found, where the true difference in BWT is':60}  1, 2, 3, 6 spreads of a run", end="")
    for name, design in FOUND.items():
        times = 200 if design.methods > 5 else 500
        shares = [power(of_size(design, effect), times, seed=2) for effect in (1.0, 2.0, 3.0, 6.0)]
        print(f"\n{name:60} " + " ".join(f"{100 * s:5.1f} %" for s in shares) + f" of {times}", end="", flush=True)
