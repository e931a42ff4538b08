"""The example store: who stays, how many, and that it can be written down."""

import json
from collections import Counter

import pytest
import torch
from pieces import ask

from cl_toolkit.data.store import ExampleStore, example_from_plain, example_to_plain
from cl_toolkit.runs.checkpoint import from_plain, to_plain
from cl_toolkit.types import Example, Message

ITEMS = [ask(str(i)) for i in range(60)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def filled(size, policy, tasks, seed=0):
    """A store that was offered each task's examples in turn; `tasks` are their numbers."""
    store, draws, start = ExampleStore(size, policy), generator(seed), 0
    for task, count in enumerate(tasks):
        store.add(task, ITEMS[start : start + count], draws)
        start += count
    return store


def ids(store):
    return [int(e.id) for _, e in store.items]


def test_reservoir_keeps_each_of_four_with_probability_a_half():
    draws, trials, counts = generator(), 20_000, Counter()
    for _ in range(trials):
        store = ExampleStore(2, "reservoir")
        store.add(0, ITEMS[:4], draws)
        counts.update(e.id for _, e in store.items)
    for i in range(4):
        assert counts[str(i)] / trials == pytest.approx(0.5, abs=0.02)


def test_reservoir_counts_over_tasks():
    """The first of two tasks of 30 keeps half of the places on average, however it was offered."""
    shares = [sum(t == 0 for t, _ in filled(10, "reservoir", [30, 30], seed).items) / 10 for seed in range(400)]
    assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("policy", ["reservoir", "ring", "quota"])
@pytest.mark.parametrize("size", [0, 1, 3, 7])
def test_never_above_its_size_and_each_once(policy, size):
    store, draws = ExampleStore(size, policy), generator()
    for task in range(5):
        store.add(task, ITEMS[4 * task : 4 * task + 4], draws)
        assert len(store) <= size
        assert len(set(ids(store))) == len(store)
    assert store.seen == 20
    assert len(store) == size
    assert (store.by_task() == {}) == (size == 0)


def test_the_ring_keeps_the_newest():
    assert ids(filled(5, "ring", [3, 4, 2])) == [4, 5, 6, 7, 8]


def test_quota_shares_equally_and_the_oldest_get_the_rest():
    store = filled(8, "quota", [20, 20, 20])
    assert {task: len(group) for task, group in store.by_task().items()} == {0: 3, 1: 3, 2: 2}
    for task, group in store.by_task().items():
        assert {int(e.id) // 20 for e in group} == {task}


def test_of_each_task_what_is_worth_most_stays_in_its_order():
    store = ExampleStore(4, "worth")
    store.add(0, ITEMS[:4], None, [0.1, 3.0, 2.0, 2.5])
    assert ids(store) == [0, 1, 2, 3]
    store.add(1, ITEMS[4:7], None, [5.0, 9.0, 7.0])
    assert (ids(store), store.worth) == ([1, 3, 5, 6], [3.0, 2.5, 9.0, 7.0])
    resumed = ExampleStore(4, "worth")
    resumed.load_state(from_plain(json.loads(json.dumps(to_plain(store.state(), {}))), {}))
    for each in (store, resumed):
        each.add(2, ITEMS[7:9], None, [1.0, 1.0])
    assert ids(store) == ids(resumed) == [1, 3, 5, 7]  # of two that are worth the same the first


def test_quota_keeps_each_of_a_tasks_examples_with_equal_chance():
    counts = Counter(i for seed in range(2000) for i in ids(filled(4, "quota", [4, 4], seed)))
    for i in range(8):
        assert counts[i] / 2000 == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("policy", ["reservoir", "ring", "quota"])
def test_no_random_number_is_drawn_while_everything_fits(policy):
    draws = generator()
    before = draws.get_state()
    store = ExampleStore(40, policy)
    store.add(0, ITEMS[:20], draws)
    store.add(1, ITEMS[20:40], draws)
    assert torch.equal(draws.get_state(), before)
    assert ids(store) == list(range(40))
    store.add(2, ITEMS[40:], draws)
    assert torch.equal(draws.get_state(), before) == (policy == "ring")


def test_without_a_size_all_are_kept():
    assert ids(filled(None, "reservoir", [20, 20, 20])) == list(range(60))


@pytest.mark.parametrize("policy", ["reservoir", "ring", "quota"])
@pytest.mark.parametrize("size", [None, 0, 7])
def test_all_that_were_ever_offered_are_counted(policy, size):
    store = filled(size, policy, [20, 10, 5])
    assert store.seen == store.state()["seen"] == 35
    assert len(store) == (35 if size is None else size)


@pytest.mark.parametrize("policy", ["reservoir", "ring", "quota"])
def test_a_store_goes_on_after_a_round_trip_through_json(policy):
    whole, resumed = filled(5, policy, [9, 9]), ExampleStore(5, policy)
    resumed.load_state(from_plain(json.loads(json.dumps(to_plain(whole.state(), {}))), {}))
    assert resumed.items == whole.items
    for store in (whole, resumed):
        store.add(2, ITEMS[30:50], generator(7))
    assert resumed.items == whole.items
    assert resumed.seen == whole.seen == 38


@pytest.mark.parametrize(
    "example",
    [
        ask("plain", "x"),
        Example(
            id="a chat",
            messages=(Message(role="system", content=""), Message(role="user", content="ä 🎈")),
            target="ö",
            choices=("ö", "ü"),
            tools=({"name": "f", "parameters": {"x": [1, 2]}},),
            source="memory",
            extra={"a": 1},
        ),
        Example(id="text", text="some text"),
        Example(id="", target="no id"),
    ],
    ids=lambda e: e.id,
)
def test_an_example_is_the_same_after_a_round_trip(example):
    assert example_from_plain(json.loads(json.dumps(example_to_plain(example)))) == example


def test_tensors_of_an_example_survive():
    example = Example(id="image", x=torch.arange(4.0).reshape(2, 2), y=torch.tensor(3))
    store, other, tensors = ExampleStore(None, "ring"), ExampleStore(None, "ring"), {}
    store.add(0, [example], generator())
    other.load_state(from_plain(to_plain(store.state(), tensors), tensors))
    assert torch.equal(other.items[0][1].x, example.x)
    assert torch.equal(other.items[0][1].y, example.y)


def test_bytes_are_of_the_text():
    store = ExampleStore(None, "ring")
    store.add(0, [ask("äb", "c"), Example(id="t", text="dd")], generator())
    assert store.nbytes() == 3 + 1 + 2
