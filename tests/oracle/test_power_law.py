"""Rehearsal against numbers worked by hand (research/methods.md 1.4), and what its batches hold."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest
from pieces import ask, task_view

from cl_toolkit.config.typed import typed
from cl_toolkit.data.store import allocate
from cl_toolkit.strategies.replay import PowerLaw, Replay, age_weights
from cl_toolkit.types import Batches

AUTHORS = [57927, 33969, 20867, 13329, 8802, 5981, 4167, 2968, 2155, 1592]


def shares(weights):
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize(
    ("schedule", "exponent", "offset", "ages", "wanted"),
    [
        ("power_law", 5.6, 10.0, [1, 2, 3], [0.4983, 0.3061, 0.1955]),
        ("power_law", 5.6, 10.0, [1, 2], [0.6195, 0.3805]),
        ("power_law", 5.6, 10.0, [1], [1.0]),
        ("exponential", 1.0, 10.0, [1, 2, 3], [0.6652, 0.2447, 0.0900]),
        ("power_law", 1.0, 1e-9, [1, 2, 3, 4], [0.48, 0.24, 0.16, 0.12]),
        ("power_law", 0.0, 10.0, [1, 2, 3, 4], [0.25] * 4),
        ("uniform", 5.6, 10.0, [1, 2, 3, 4], [0.25] * 4),
    ],
)
def test_shares(schedule, exponent, offset, ages, wanted):
    # the shares of the source are rounded by cutting in places, hence one unit of the last digit
    assert shares(age_weights(ages, schedule, exponent, offset)) == pytest.approx(wanted, abs=1e-4)


def test_the_ten_counts_of_the_authors():
    plan = PowerLaw(PowerLaw.Config(unrestricted=True)).plan(dict.fromkeys(range(1, 10), 10**6), AUTHORS[0])
    assert list(plan) == list(range(1, 10))
    for age, count in plan.items():
        assert abs(count - AUTHORS[age]) <= 1
    assert sum(plan.values()) / AUTHORS[0] == pytest.approx(1.62, abs=0.005)


def test_unrestricted_takes_no_more_than_a_task_has():
    plan = PowerLaw(PowerLaw.Config(unrestricted=True)).plan({1: 100, 2: 10**6}, AUTHORS[0])
    assert plan == {1: 100, 2: AUTHORS[2]}


def test_counts_sum_to_the_budget_and_stay_within_each_task():
    rng = random.Random(0)
    for _ in range(500):
        sizes = [rng.randint(0, 40) for _ in range(rng.randint(1, 9))]
        weights = [rng.random() + 1e-6 for _ in sizes]
        budget = rng.randint(0, sum(sizes))
        counts = allocate(budget, weights, sizes)
        assert sum(counts) == budget
        assert all(0 <= c <= s for c, s in zip(counts, sizes, strict=True))


def test_largest_remainder_by_hand():
    # exact: 3.5, 2.1, 1.4 -> 3, 2, 1, and the one that is left goes to the largest remainder
    assert allocate(7, [0.5, 0.3, 0.2], [99] * 3) == [4, 2, 1]
    # what the first cannot hold goes to the others 3 : 2
    assert allocate(12, [0.5, 0.3, 0.2], [2, 99, 99]) == [2, 6, 4]


def test_a_store_that_is_too_small_is_cycled_with_the_same_shares():
    assert allocate(80, [3, 1], [10, 10]) == [60, 20]


@pytest.mark.parametrize("schedule", ["power_law", "exponential"])
def test_a_younger_task_never_gets_less(schedule):
    for budget in range(60):
        counts = allocate(budget, age_weights(range(1, 8), schedule, 2.0), [1000] * 7)
        assert counts == sorted(counts, reverse=True)


def test_weights_that_vanish_do_not_stop_the_allocation():
    weights = age_weights([900, 901, 902], "exponential", 1.0)
    assert weights == [0.0] * 3
    assert allocate(9, weights, [10] * 3) == [3, 3, 3]


def filled(cls=Replay, tasks=3, each=12, **config):
    """A strategy that has seen `tasks` tasks, and the next one with its plain batches."""
    strategy = cls(cls.Config(**config))
    for index in range(tasks):
        done = task_view([ask(f"{index}.{i}") for i in range(each)], index=index)
        strategy.after_task(None, done)
    task = task_view([ask(f"{tasks}.{i}") for i in range(each)], index=tasks, epochs=2)
    return strategy, task


def batches_of(strategy, task, name=None):
    strategy.name = name or strategy.name
    return strategy.batches(None, task, task.batches())


@pytest.mark.parametrize(("fraction", "rehearsed"), [(0.5, 4), (0.2, 1), (0.75, 12)])
def test_the_share_of_every_batch_and_the_sources(fraction, rehearsed):
    strategy, task = filled(replay_fraction=fraction)
    batches = batches_of(strategy, task)
    assert len(batches) == len(task.batches()) == 6
    for new, batch in zip(task.batches(), batches, strict=True):
        assert batch[: len(new)] == new
        assert [e.source for e in batch] == ["task"] * 4 + ["memory"] * rehearsed
        assert all(not e.id.startswith("3.") for e in batch[4:])


def test_no_example_comes_twice_in_an_epoch_while_the_store_is_large_enough():
    strategy, task = filled(replay_fraction=0.75)  # 36 rehearsed per epoch of 36 stored
    batches = batches_of(strategy, task)
    for epoch in (range(3), range(3, 6)):
        ids = [e.id for i in epoch for e in batches[i] if e.source == "memory"]
        assert len(set(ids)) == len(ids) == 36


def test_a_small_store_is_cycled_evenly():
    strategy, task = filled(tasks=1, replay_fraction=0.8, buffer_size=12)  # 48 rehearsed of 12 stored
    counts = Counter(e.id for i in range(3) for e in batches_of(strategy, task)[i] if e.source == "memory")
    assert set(counts.values()) == {4}


def test_uniform_replay_gives_each_task_the_same_and_power_law_less_to_old_ones():
    strategy, task = filled(replay_fraction=0.5)
    by_task = Counter(e.id[0] for i in range(3) for e in batches_of(strategy, task)[i] if e.source == "memory")
    assert by_task == {"0": 4, "1": 4, "2": 4}
    strategy, task = filled(PowerLaw, replay_fraction=0.5)
    by_task = Counter(e.id[0] for i in range(3) for e in batches_of(strategy, task)[i] if e.source == "memory")
    assert by_task == {"2": 6, "1": 4, "0": 2}  # 12 in shares 0.498, 0.306, 0.196


def test_a_batch_can_be_asked_for_by_its_index():
    strategy, task = filled()
    forward = list(batches_of(strategy, task))
    again = batches_of(strategy, task)
    assert [again[i] for i in (5, 0, 3, 1, 4, 2)] == [forward[i] for i in (5, 0, 3, 1, 4, 2)]
    assert forward[0][4:] != forward[3][4:], "another epoch, another draw"
    assert list(batches_of(strategy, task, name="other")) != forward, "another name, other draws"


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.45])
def test_batches_grow_evenly(fraction):
    strategy, task = filled(each=64, tasks=2, replay_fraction=fraction)
    batches = batches_of(strategy, task)
    for epoch in (range(16), range(16, 32)):
        sizes = [sum(e.source == "memory" for e in batches[i]) for i in epoch]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == round(64 * fraction / (1 - fraction))


def test_off_stores_nothing_and_changes_nothing():
    for config in ({"replay_fraction": 0.0}, {"buffer_size": 0}):
        strategy, task = filled(**config)
        plain = Batches(3, lambda i: [])
        assert len(strategy.store) == 0
        assert strategy.batches(None, task, plain) is plain


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (Replay, {"replay_fraction": 1.0}, "s.replay_fraction: expected a number in [0, 1), got 1.0"),
        (Replay, {"buffer_size": -1}, "s.buffer_size: expected null or 0 or more, got -1"),
        (PowerLaw, {"offset": 0}, "s.offset: expected a number above 0, got 0"),
        (PowerLaw, {"schedule": "exponential", "exponent": 0}, "s.exponent: expected a number above 0"),
    ],
)
def test_settings_without_meaning_are_refused(cls, settings, message):
    from cl_toolkit import UserError

    with pytest.raises(UserError) as refusal:
        typed(cls.Config, settings, "s", "f.yaml")
    assert message in str(refusal.value)


def test_age_counts_from_a_tasks_own_turn():
    strategy, _ = filled(PowerLaw, tasks=2)
    asked = {}
    strategy.plan = lambda sizes, new: asked.update(sizes) or dict.fromkeys(sizes, 0)
    strategy.batches(None, SimpleNamespace(index=4, examples=[1], batch_size=1), Batches(1, lambda i: []))
    assert asked == {4: 12, 3: 12}
