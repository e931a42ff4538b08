"""A task's batches, seeds and generators: what is drawn when, how many steps there are."""

import hashlib

import pytest
import torch
from pieces import ask, equal, task_view, tiny_model, train, weights_of

from cl_toolkit.objective import Objective
from cl_toolkit.seeds import generator_from, seed_from
from cl_toolkit.strategies.objectives.sft import SFT
from cl_toolkit.types import Batch

EXAMPLES = [ask(str(i), "ab"[i % 2]) for i in range(10)]


def order(view, epoch=None):
    """Ids in the order in which they come; of one epoch of three batches, or of all."""
    batches = list(view.batches())
    chosen = batches if epoch is None else batches[3 * epoch : 3 * epoch + 3]
    return [e.id for batch in chosen for e in batch]


def test_every_epoch_has_each_example_once_in_an_order_of_its_own():
    view = task_view(EXAMPLES, epochs=3)
    orders = [order(view, epoch) for epoch in range(3)]
    assert [sorted(o) for o in orders] == [[str(i) for i in range(10)]] * 3
    assert len({tuple(o) for o in orders}) == 3
    assert [str(i) for i in range(10)] not in orders


def test_the_order_is_that_of_the_seed_the_task_and_the_epoch():
    """Worked out without the class: a permutation from SHA-256 of "seed/order/task/epoch"."""
    for epoch in range(2):
        digest = hashlib.sha256(f"7/order/2/{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") // 2)
        wanted = [str(i) for i in torch.randperm(10, generator=generator).tolist()]
        view = task_view(EXAMPLES, epochs=2, index=2, seeds={"data": 7, "memory": 0, "rollout": 0})
        assert order(view, epoch) == wanted


@pytest.mark.parametrize("change", [{"index": 1}, {"seeds": {"data": 1, "memory": 0, "rollout": 0}}])
def test_another_task_or_seed_has_another_order(change):
    assert order(task_view(EXAMPLES, **change)) != order(task_view(EXAMPLES))
    assert order(task_view(EXAMPLES, **change)) == order(task_view(EXAMPLES, **change))


def test_a_batch_can_be_asked_for_out_of_order():
    batches = task_view(EXAMPLES, epochs=2).batches()
    assert [batches[i] for i in (5, 0, 3)] == [list(batches)[i] for i in (5, 0, 3)]


class Twice(Objective):
    """Two updates per batch."""

    updates = 2


@pytest.mark.parametrize(
    ("objective", "settings", "wanted"),
    [
        (SFT, {}, 3),  # 4 + 4 + 2
        (SFT, {"epochs": 2}, 6),
        (SFT, {"epochs": 0.5}, 2),  # 1.5 to the even number
        (SFT, {"epochs": 0.1}, 1),  # one at least
        (SFT, {"max_steps": 7}, 7),
        (SFT, {"max_steps": 1, "epochs": 9}, 1),
        (SFT, {"max_steps": -1}, 3),
        (SFT, {"max_steps": 0}, 3),
        (Twice, {}, 3),
        (Twice, {"max_steps": 7}, 3),  # six updates
        (Twice, {"max_steps": 1}, 1),
    ],
)
def test_how_many_batches_there_are(objective, settings, wanted):
    batches = task_view(EXAMPLES, objective(), **settings).batches()
    assert len(batches) == len(list(batches)) == wanted
    assert len(batches[0]) == 4


def test_the_last_batch_is_kept():
    assert [len(b) for b in task_view(EXAMPLES, epochs=2).batches()] == [4, 4, 2, 4, 4, 2]


def test_a_seed_is_of_all_its_parts_and_the_same_on_every_machine():
    assert seed_from(3, "replay", 2) == int.from_bytes(hashlib.sha256(b"3/replay/2").digest()[:8], "big") // 2
    assert 0 <= seed_from("a") < 2**63
    assert len({seed_from(*parts) for parts in ((1, 2), (2, 1), (12,), (1, 2, 0))}) == 4


def test_each_name_has_a_generator_of_its_own_that_goes_on():
    view = task_view(EXAMPLES, index=1, seeds={"data": 0, "memory": 5, "rollout": 0})
    first, second, other = (torch.rand(1, generator=view.generator(name)) for name in ("a", "a", "b"))
    assert len({float(v) for v in (first, second, other)}) == 3
    assert float(first) == float(torch.rand(1, generator=generator_from(5, "a", 1)))


class Drawing(Objective):
    """Keeps what its generator and the count of rollouts were when it encoded."""

    def encode(self, model, task, examples):
        task.rollouts += 1
        self.drawn = float(torch.rand(1, generator=task.generator("x"))), task.rollouts, dict(task.seeds)
        return Batch(inputs={}, labels=torch.zeros(len(examples)), examples=tuple(examples))


def test_what_is_encoded_aside_draws_from_generators_of_its_own():
    """Not those of training, which go on as if nothing had been asked; and anew at each call."""
    objective = Drawing()
    view, twin = task_view(EXAMPLES, objective), task_view(EXAMPLES, Drawing())
    drawn = float(torch.rand(1, generator=view.generator("x")))
    view.encode(EXAMPLES[:2])
    one = objective.drawn
    view.encode(EXAMPLES[:2])
    assert objective.drawn[:2] != one[:2]
    assert one[2] == {part: seed_from(seed, "aside") for part, seed in view.seeds.items()}
    assert view.rollouts == 0
    assert drawn == float(torch.rand(1, generator=twin.generator("x")))
    assert float(torch.rand(1, generator=view.generator("x"))) == float(torch.rand(1, generator=twin.generator("x")))


def test_a_view_with_fewer_examples_is_the_same_task_otherwise():
    view = task_view(EXAMPLES, name="n", index=3, batch_size=2)
    kept = view.keep(EXAMPLES[:3])
    assert (kept.name, kept.index, kept.objective, len(kept.batches())) == ("n", 3, view.objective, 2)
    assert list(kept.examples) == list(EXAMPLES[:3])
    assert len(view.examples) == 10


def test_two_epochs_are_not_one_epoch_twice():
    """The weights after two epochs show the order: with the first epoch's order again they are others."""

    class Same(type(task_view(EXAMPLES))):
        def batches(self):
            from cl_toolkit.types import Batches

            first = list(super().batches())[:3]
            return Batches(6, lambda i: first[i % 3])

    models = tiny_model(), tiny_model()
    view, same = task_view(EXAMPLES, epochs=2), task_view(EXAMPLES, epochs=2)
    same.__class__ = Same
    for model, task in zip(models, (view, same), strict=True):
        train(model, task)
    assert not equal(*map(weights_of, models))
